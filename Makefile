# The commands people use. Each prepares the machine first (deploy/local/setup), which is quick when all is there.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help build demo test soak bench lint deny

# Outside the checkout, so that a fresh clone finds RocksDB compiled.
BUILD_DIR := $(abspath $(or $(S3_REPLICATOR_BUILD_DIR),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/s3-replicator))
export CARGO_TARGET_DIR := $(abspath $(or $(CARGO_TARGET_DIR),$(BUILD_DIR)/target))
export S3_REPLICATOR_BIN := $(CARGO_TARGET_DIR)/release/s3-replicator
PYTHON := $(BUILD_DIR)/venv/bin/python
RUNNER = $(if $(shell cargo nextest --version 2>/dev/null),nextest run,test)

help:     ## what can be done here
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-7s %s\n", $$1, $$2}' Makefile

# Always the whole workspace and the release profile: one set of features, so one RocksDB for all targets.
build:    ## the release binary; the last line is its path
	@deploy/local/setup build
	@cargo build --release --workspace
	@echo "$(S3_REPLICATOR_BIN)"

demo:     ## the daemon at work between two local accounts; ARGS=--keep leaves it running to play with
	@deploy/local/setup
	@cargo build --release --workspace
	@$(PYTHON) deploy/local/demo.py $(ARGS)

# With failpoints, which the binary of `make build` does not have: the daemon's own crate is compiled twice for that.
test:     ## all tests, with a LocalStack beside them; ARGS go to the runner
	@deploy/local/setup test
	@cargo build --release --workspace --features s3-replicator/failpoints
	@$(PYTHON) deploy/local/stack.py run -- cargo $(RUNNER) --release --workspace $(ARGS)

soak:     ## random histories in the simulator, then the binary on LocalStack, SECONDS=600 each; seeds are printed
	@deploy/local/setup
	@S3_REPLICATOR_SOAK_SECONDS=$(or $(SECONDS),600) cargo test --release --workspace --test simulated -- --nocapture random_histories
	@cargo build --release --workspace --features s3-replicator/failpoints --quiet
	@S3_REPLICATOR_SOAK_SECONDS=$(or $(SECONDS),600) $(PYTHON) deploy/local/stack.py run -- \
		cargo test --release --workspace --test worlds -- --nocapture soak::

bench:    ## the daemon beside rclone, s3sync, curl and a bare loop of the SDK, about 35 minutes; ARGS=--quick for less
	@deploy/local/setup bench
	@cargo build --release --workspace --quiet
	@$(PYTHON) tests/bench/run.py --bin $(CARGO_TARGET_DIR)/release --weed $(BUILD_DIR)/venv/bin/weed \
		--rclone $(BUILD_DIR)/peers/bin/rclone --s3sync $(BUILD_DIR)/peers/bin/s3sync $(ARGS)

lint:     ## formatting and clippy, warnings are errors
	@deploy/local/setup build
	@cargo fmt --all --check
	@cargo clippy --release --workspace --all-targets -- -D warnings

deny:     ## licences, sources, bans and advisories of the dependencies; CHECKS chooses
	@deploy/local/setup lint
	@$(BUILD_DIR)/tools/bin/cargo-deny --all-features check $(CHECKS)
