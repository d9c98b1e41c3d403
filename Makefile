# Roost in two commands, on Debian 12 or 13 or on Ubuntu: `make run` and `make test`.
# The logic is in scripts/; this file only says what needs what.

# Words for `roost run`, for example: make run ARGS="--memory 1G --stats"
ARGS =

.PHONY: help run test debian run-l0 test-l0 conformance hostile soak powercut kernel-build install-debian exits docs selftests build bench check clean setup
.DEFAULT_GOAL := build

help: ## show this
	@sed -n 's/^\([a-z0-9-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

run: build ## boot a stock Linux kernel to a shell (ARGS=... for `roost run`)
	@scripts/run.sh $(ARGS)

test: ## run every check: format, lints, host tests, whole-system tests
	@scripts/setup.sh --tests
	@scripts/test.sh

debian: build ## boot Debian with systemd from a disk to its login (ARGS=... for scripts/debian.sh)
	@scripts/setup.sh --debian
	@scripts/debian.sh $(ARGS)

run-l0: build ## boot to a shell under the reference L0, on KVM or emulated (ARGS=... for scripts/l0.sh)
	@scripts/l0.sh --build $(ARGS)

test-l0: setup ## run the tests of the reference L0, with the whole chain emulated
	@scripts/test-l0.sh

conformance: build ## judge L1 by each rule of the guest ABI (ARGS=... for tests/conformance/run.sh)
	@tests/conformance/run.sh --json target/conformance.json $(ARGS)

hostile: build ## attack L1 from a guest (ARGS=... for tests/hostile/run.sh)
	@tests/hostile/run.sh $(ARGS)

soak: build ## run hostile and other guests beside each other for half an hour (ARGS=SECONDS)
	@tests/soak/run.sh $(ARGS)

powercut: build ## kill the machine in the middle of writes, 200 times (ARGS=COUNT)
	@tests/powercut.sh $(ARGS)

docs: setup ## build the code's documentation and the book, and check their links
	@scripts/docs.sh

selftests: build ## run the kernel's own x86 selftests natively and in a guest (ARGS="--kind generic")
	@tests/x86-selftests/run.sh $(ARGS)

build: setup ## build the images and the tool
	@scripts/build.sh

bench: build ## measure the guest benchmark
	@scripts/bench.sh $(ARGS)

kernel-build: build ## build a kernel in a guest, and compare it with one built here (ARGS=--direct: and the time)
	@scripts/setup.sh --debian
	@tests/kernel-build/run.sh $(ARGS)

install-debian: build ## have a Debian VM install Roost into its own boot menu, and start it
	@scripts/setup.sh --tests
	@tests/install-debian.sh $(ARGS)

exits: build ## measure each kind of exit and write docs/exits.md (ARGS=... for scripts/exits.sh)
	@scripts/exits.sh $(ARGS)

check: build ## say whether this machine can run Roost
	@target/tool/roost check

clean: ## remove everything built or fetched
	rm -rf target cache

setup: ## install what is missing
	@scripts/setup.sh
