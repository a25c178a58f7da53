mod address_space; mod calls; mod intervals; mod pages; mod reconcile; mod region; mod totals;
