"""Writes jinja.json: what Jinja2, with the settings of transformers, makes of the templates in jinja.txt.

Run it from the root of the repository; it was run with Jinja2 3.1.6. Templates are divided by lines of %%%%; those that are only
expressions become a case for each expression.
"""

import json, sys
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2 import ext, nodes
import jinja2
from datetime import datetime
class Gen(ext.Extension):
    tags={"generation"}
    def parse(self,parser):
        lineno=next(parser.stream).lineno
        body=parser.parse_statements(["name:endgeneration"],drop_needle=True)
        return nodes.CallBlock(self.call_method("_s"),[],[],body).set_lineno(lineno)
    def _s(self,caller): return caller()
def raise_exception(m): raise jinja2.exceptions.TemplateError(m)
def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
env=ImmutableSandboxedEnvironment(trim_blocks=True,lstrip_blocks=True,extensions=[Gen,jinja2.ext.loopcontrols])
env.filters["tojson"]=tojson
env.globals["raise_exception"]=raise_exception
env.globals["strftime_now"]=lambda f: datetime(2026,1,15,12,0,0).strftime(f)
C={"messages":[{"role":"system","content":"Be brief. "},{"role":"user","content":"Hi <you> & 'é'"},{"role":"assistant","content":None,"tool_calls":[{"type":"function","function":{"name":"f","arguments":{"x":1,"y":[1.5,True,None],"z":"a\"b"}}}]},{"role":"tool","content":"{\"price\": 14}"},{"role":"user","content":[{"type":"text","text":"part"},{"type":"image"}]}],
"tools":[{"type":"function","function":{"name":"get_price","description":"Price","parameters":{"type":"object","properties":{"item":{"type":"string","enum":["a","b"]},"count":{"type":["integer","null"],"default":2}},"required":["item"]}}}],
"bos_token":"<s>","eos_token":"</s>","add_generation_prompt":True,"enable_thinking":False,"big":12345678901234567890,"f":0.1,"n":-7,"s":"  The quick\tbrown\n fox  ","empty":"","l":[3,1,2],"d":{"b":1,"a":{"c":[1,2]}},"u":"naïve ☃ 🔥"}
out=[]
bad=0
import re
def units():
    for src in open("tests/data/jinja.txt").read().split("\n%%%%\n"):
        if "{%" in src or "\n" in src.strip() or "{#" in src: yield src
        else:
            for m in re.findall(r"\{\{.*?\}\}(?!\})", src): yield m
for src in units():
    src=src.rstrip("\n") if src.endswith("\n\n") else src
    if not src: continue
    try:
        r={"source":src,"expected":env.from_string(src).render(**C)}
    except Exception as e:
        r={"source":src,"error":type(e).__name__+": "+str(e)}
    out.append(r)
with open("tests/data/jinja.json","w") as f:
    f.write('{"context": ' + json.dumps(C) + ',\n"cases": [\n')
    f.write(",\n".join(json.dumps(r) for r in out) + "\n]}\n")
print(len(out), "cases")
