#!/bin/sh
# Makes sure that a program which uses Vulkan finds an adapter. On Linux without any driver it installs Mesa's
# (which includes a software adapter) and the loader; elsewhere nothing is needed. Says what it does.
set -eu

say() { echo "ensure-vulkan: $*" >&2; }

case "$(uname -s)" in
    Linux) ;;
    *) exit 0 ;; # Metal and Direct3D come with the system.
esac

has_loader() {
    for dir in $(echo "${LD_LIBRARY_PATH:-}" | tr ':' ' ') /lib /usr/lib /usr/local/lib /lib64 /usr/lib64 \
        /usr/lib/*-linux-gnu /lib/*-linux-gnu; do
        [ -e "$dir/libvulkan.so.1" ] && return 0
    done
    { ldconfig -p 2>/dev/null || /sbin/ldconfig -p 2>/dev/null; } | grep -q 'libvulkan\.so\.1'
}

has_driver() {
    [ -n "${VK_DRIVER_FILES:-}${VK_ICD_FILENAMES:-}" ] && return 0
    for file in /usr/share/vulkan/icd.d/*.json /etc/vulkan/icd.d/*.json /usr/local/share/vulkan/icd.d/*.json \
        "${XDG_DATA_HOME:-${HOME:-/nonexistent}/.local/share}"/vulkan/icd.d/*.json; do
        [ -e "$file" ] && return 0
    done
    return 1
}

if has_loader && has_driver; then
    exit 0
fi

packages="libvulkan1 mesa-vulkan-drivers"
if ! command -v apt-get >/dev/null 2>&1; then
    say "no Vulkan driver was found, and there is no apt-get to install one with."
    say "Install your distribution's Vulkan loader and Mesa's Vulkan drivers, then try again."
    exit 1
fi
if [ "$(id -u)" = 0 ]; then
    as_root=""
elif command -v sudo >/dev/null 2>&1; then
    as_root="sudo"
else
    say "no Vulkan driver was found. As root, run: apt-get install $packages"
    exit 1
fi
say "no Vulkan driver was found; installing $packages"
if ! { $as_root apt-get update -qq && $as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends $packages >&2; }; then
    say "the installation failed. As root, run: apt-get update && apt-get install $packages"
    exit 1
fi
if ! { has_loader && has_driver; }; then
    say "$packages are installed, but still no Vulkan driver is found."
    exit 1
fi
