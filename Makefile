# make demo   see it work: three nodes, the example model, a stream of events, a node killed
# make test   everything that must hold before a change lands
#
# Both install what they need where they may (apt, as root or by sudo), and name it where not.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

# Outside the checkout, so that RocksDB and Burn are compiled once for all clones.
export CARGO_TARGET_DIR ?= $(HOME)/.cache/statehouse/target
# Where there is a ccache it sits before the compilers on the path: a changed flag then
# costs minutes, not a quarter of an hour.
export PATH := /usr/lib/ccache:$(PATH)

# One profile for everything: each further one would compile RocksDB again.
CARGO_FLAGS := --release --locked
STATEHOUSE := $(CARGO_TARGET_DIR)/release/statehouse

.PHONY: help demo build test fmt check-fmt lint unit check-cuda doc fix needs bench soak

help:
	@sed -n '1,4p' Makefile

needs:
	@./.ci/needs

build: needs
	@./.ci/build cargo build $(CARGO_FLAGS) --bin statehouse

# EVENTS=FILE.csv[.gz] replays that file of bank transactions instead of a made-up stream.
demo: build
	$(STATEHOUSE) demo $(if $(EVENTS),--events $(EVENTS))

test: needs check-fmt lint unit check-cuda doc

check-fmt:
	cargo fmt --all --check

lint:
	@./.ci/build cargo clippy $(CARGO_FLAGS) --workspace --all-targets -- -D warnings

unit:
	cargo test $(CARGO_FLAGS) --workspace --no-fail-fast

check-cuda:
	cargo check $(CARGO_FLAGS) --features cuda

doc:
	RUSTDOCFLAGS="-D warnings" cargo doc $(CARGO_FLAGS) --workspace --no-deps

fix:
	cargo fmt --all

# Micro benchmarks; benches/peers/ has the comparisons.
bench: needs
	cargo bench --profile release --locked --workspace

# The promises of a cluster, for long: kill -9, power losses (as root, with loop devices), damaged
# files, clock steps, pauses, cuts, moves, restarts, repeated requests. Runs what `make unit` builds.
# Writes benches/results/soak.md. SEED=N repeats a run's choices. A cluster mostly waits, so three tests
# of one run at a time, and damage to the files of a store fills what is left of the processors.
SOAK_RESULTS := $(CURDIR)/benches/results/soak.md
SOAK := KILLS=100 ALL_KILLS=60 PAUSES=40 CONTROLLER_PAUSES=15 CATALOG_PAUSES=15 ROUNDS=12 MOVES=40 \
  UPLOADS=40 POWER_LOSSES=60 CLOCK_STEPS=20 DAMAGED_FILES=40 FLIPS=10000 SALVAGES=100

soak: needs
	@{ echo '# Soak'; echo; \
	  echo "Commit $$(git rev-parse --short HEAD), $$(date -u +%Y-%m-%d), $$(nproc) cores: \`$(SOAK)\`."; \
	  echo; echo '| promise | what was done to it, and came of it |'; echo '|---|---|'; } > $(SOAK_RESULTS)
	cargo test $(CARGO_FLAGS) --workspace --test cluster --test promises --no-run
	export $(SOAK) SOAK_RESULTS=$(SOAK_RESULTS); failed=0; \
	nice cargo test $(CARGO_FLAGS) --workspace --test promises -- \
	  damage_in_any_file salvage_keeps --nocapture & \
	cargo test $(CARGO_FLAGS) --workspace --test cluster -- --list | sed -n 's/: test$$//p' | \
	  xargs -P 3 -I TEST cargo test --quiet $(CARGO_FLAGS) --workspace --test cluster -- \
	    --exact TEST --nocapture || failed=1; \
	wait $$! || failed=1; exit $$failed
