// Products of many rows by cooperative matrices.
enable wgpu_cooperative_matrix;
#import coop_product
