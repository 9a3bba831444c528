# The two commands of a newcomer. All else: cargo xtask --help

.PHONY: demo test check clean

# From nothing to an image of a real registry in its own micro-VM. As root.
demo:
	cargo xtask demo

# Every test there is; the last line is "N passed, N failed". As root.
test:
	@cargo xtask test

# What must hold before a commit.
check:
	cargo xtask check

# The build; the kernel and the lab stay in their cache.
clean:
	cargo clean
