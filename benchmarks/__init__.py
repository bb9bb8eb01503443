"""Speed and memory, ours beside other libraries, as ratios inside one run. `make bench`.

`speed` compares libraries, `curves` shows what our own step costs, `extraction` times what is
around training. Not part of the installed package.
"""
