# The two commands are `make up` and `make test`. Everything they need comes from distribution packages, Rust crates and
# Go modules, by name.

# What building and running needs, and what only the tests need.
PACKAGES      = ca-certificates gcc libc6-dev make git runc mmdebstrap nftables iproute2 conntrack e2fsprogs
TEST_PACKAGES = postgresql chromium chromium-driver

CARGO_TARGET_DIR ?= $(CURDIR)/target
export CARGO_TARGET_DIR
BIN = $(shell scripts/target-dir)

.PHONY: help up down test check build packages test-packages tools
help:
	@echo "make up      build everything, start Stolos, make the cluster 'demo'"
	@echo "make down    remove everything that 'make up' put on this host (state and caches stay; PURGE=1 removes state)"
	@echo "make test    all checks and tests, those with real clusters included"
	@echo "make check   formatting, lints, documentation, dependency directions"

tools:
	@command -v cargo >/dev/null || { echo "error: cargo is missing; install Rust (see rust-toolchain.toml)" >&2; exit 1; }
	@command -v go >/dev/null || { echo "error: go is missing; install Go 1.26 or newer" >&2; exit 1; }

packages:
	@scripts/install-packages $(PACKAGES)

test-packages:
	@scripts/install-packages $(PACKAGES) $(TEST_PACKAGES)

build: tools packages
	cargo build --workspace --bins

up: build
	@$(BIN)/stolos up --demo

down:
	@if [ -x $(BIN)/stolos ]; then $(BIN)/stolos down $(if $(PURGE),--purge); else echo "nothing was built here, so nothing to take down"; fi

check: tools
	cargo xtask ci

test: tools test-packages check
	cargo build --workspace --bins
	$(BIN)/stolos-build all
	$(BIN)/stolos-build gc --older-than-days 1
	cargo test --workspace --no-fail-fast
