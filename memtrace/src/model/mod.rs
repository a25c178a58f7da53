mod address_space; mod calls; mod intervals; mod pages; mod reconcile; mod region; mod totals;
mod blocks; mod freed; mod heap; mod site; mod fault; mod timeline; mod coverage;
