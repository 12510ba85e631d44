# What people type. `make demo` and `make test` set up what they need; the others expect it to be there.

ifeq ($(shell id -u),0)
PREFIX ?= /usr/local
else
PREFIX ?= $(HOME)/.local
endif
export PREFIX
# Where rustup puts cargo: it may have been installed a moment ago, after this shell read its profile.
export PATH := $(HOME)/.cargo/bin:$(PATH)

.PHONY: help demo setup test check bench
help:
	@echo 'make demo    set everything up and open the workspace signed-links of the example project'
	@echo 'make setup   only set up: packages, binary, example project'
	@echo 'make test    all checks and tests'
	@echo 'make check   formatting, lints, dependency rules, example project'
	@echo 'make bench   measure, against a floor made in the same run'

demo: setup
	$(PREFIX)/bin/envforge up signed-links -c

setup:
	scripts/setup

test:
	scripts/setup --test-deps
	$(MAKE) check
	cargo build --locked --package envforge
	scripts/check-documents
	cargo test --locked --workspace

check:
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	scripts/check-dependencies
	scripts/check-example

bench:
	cargo build --locked --release --package envforge
	cargo build --locked --release --package envforge-testkit --example sockets
	bench/run
