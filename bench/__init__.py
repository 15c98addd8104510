"""Side-by-side measurements. `make bench` runs them all; ratios are what counts, times are not."""
