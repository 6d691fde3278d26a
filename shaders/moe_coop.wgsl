// Products of many entries with the weights of their experts by cooperative matrices.
enable wgpu_cooperative_matrix;
#set GROUPED
#import coop_product
