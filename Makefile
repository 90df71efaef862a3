# SPDX-License-Identifier: LGPL-3.0-or-later
# Cargo builds the Rust parts; this adds what it does not do: system packages, C, installation.

PREFIX ?= /usr
LIBDIR ?= $(PREFIX)/lib
DESTDIR ?=
CARGO ?= cargo
CC ?= cc
CFLAGS ?= -O2 -g

TARGET := $(or $(CARGO_TARGET_DIR),target)
# Of the profile that a rule is made for: release, or debug under `make test`.
PROFILE ?= release
OUT := $(TARGET)/$(PROFILE)
# Programs that test and measure take longer to link than all the rest; who installs needs none.
CARGO_PROFILE := $(if $(filter release,$(PROFILE)),--release --exclude lcap-tests \
	--exclude lcap-benches,--all-targets)
C_WARNINGS := -Wall -Wextra -Werror

# Every folder with a Cargo.toml is a module, but for the authors' kit.
POLICIES := $(filter-out sdk,$(patsubst policies/%/Cargo.toml,%,$(wildcard policies/*/Cargo.toml)))

DENY_FUZZ = $(CARGO) deny --manifest-path fuzz/Cargo.toml --config deny.toml --locked

.DEFAULT_GOAL := help
.PHONY: help setup setup-build build rust examples test explore deny soak abuse bench demo install install-manual wheel deb rpm test-packages test-systemd clean

help:            ## show this
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 18

setup:           ## install the system packages that build and tests need (apt-get or dnf)
	@packaging/setup.sh test

setup-build:
	@packaging/setup.sh build

build: examples  ## release binaries, libraries and modules in target/release

rust: setup-build
	$(CARGO) build --workspace --locked $(CARGO_PROFILE)

# The C example and the C module. The loader looks for the library by its soname.
examples: rust
	@mkdir -p $(OUT)/examples-c
	ln -sf ../liblcapclient.so $(OUT)/examples-c/liblcapclient.so.1
	$(CC) $(CFLAGS) $(C_WARNINGS) -I include docs/examples/reader.c -o $(OUT)/examples-c/reader \
		-L $(OUT) -llcapclient '-Wl,-rpath,$$ORIGIN'
	$(CC) $(CFLAGS) $(C_WARNINGS) -I include docs/examples/hsm_alert.c -o $(OUT)/examples-c/hsm_alert \
		-L $(OUT) -llcapclient '-Wl,-rpath,$$ORIGIN'
	$(CC) $(CFLAGS) $(C_WARNINGS) -I include -shared -fPIC policies/fifo-c/fifo.c \
		-o $(OUT)/fifo_c.so

test: setup      ## everything that must pass before a change goes in
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(MAKE) --no-print-directory examples PROFILE=debug
	$(CARGO) test --workspace --locked $(TEST_FLAGS)
	@if $(CARGO) deny --version >/dev/null 2>&1; then \
		$(CARGO) deny --locked check --hide-inclusion-graph licenses bans sources && \
		$(DENY_FUZZ) check --hide-inclusion-graph licenses bans sources; \
	else echo 'licences of dependencies not checked: no cargo-deny here'; fi

# Other cases than those of `make test`, which are always the same; a failing one says its seed.
explore: setup   ## property tests and the simulation with cases that were never drawn before
	@seed=$$(date +%s%N); echo "PROPTEST_RNG_SEED=$$seed LCAP_FIRST_SEED=$$seed"; \
	$(MAKE) --no-print-directory examples PROFILE=debug && \
	PROPTEST_RNG_SEED=$$seed LCAP_FIRST_SEED=$$seed LCAP_SECONDS=$${LCAP_SECONDS:-120} \
		$(CARGO) test --workspace --locked

# Compiling cargo-deny takes longer than all tests, and advisories need the network.
deny:            ## check licences, sources and advisories of dependencies (cargo install cargo-deny)
	$(CARGO) deny --locked check
	$(DENY_FUZZ) check

MINUTES ?= 10
soak: setup      ## kill, stop and cut things for MINUTES=10; ends with a line that says whether anything was lost
	$(CARGO) build --workspace --locked --release
	$(CARGO) run --locked --release -p lcap-tests --bin lcap-soak -- --minutes $(MINUTES)

abuse: setup     ## attack the ports of an lcapd for MINUTES=10, once without keys and once with; shows its memory and descriptors
	$(CARGO) build --workspace --locked --release
	$(CARGO) run --locked --release -p lcap-tests --bin lcap-abuse -- --minutes $(MINUTES)
	$(CARGO) run --locked --release -p lcap-tests --bin lcap-abuse -- --minutes $(MINUTES) --keys

RUNS ?= 3
bench: build     ## measure lcap on this machine beside references, RUNS=3 times each; target/bench has JSON and plots
	$(CARGO) build --workspace --locked --release
	$(OUT)/lcap-benches --runs $(RUNS) --out $(TARGET)/bench

demo: build      ## a daemon with simulated MDTs and three clients; proves that nothing is lost
	$(OUT)/lcap demo

install:         ## install what `make build` made; DESTDIR= PREFIX=/usr LIBDIR=$(PREFIX)/lib
	@test -x $(OUT)/lcapd || { echo 'nothing is built yet: make build' >&2; exit 1; }
	install -D -m 755 $(OUT)/lcap $(DESTDIR)$(PREFIX)/bin/lcap
	install -D -m 755 $(OUT)/lcapd $(DESTDIR)$(PREFIX)/sbin/lcapd
	install -d -m 755 $(DESTDIR)$(PREFIX)/libexec/lcap
	install -m 755 $(OUT)/lhsm_mdt_upcall $(DESTDIR)$(PREFIX)/libexec/lcap/lhsm_mdt_upcall
	install -m 755 $(OUT)/lhsm_worker_posix $(DESTDIR)$(PREFIX)/bin/lhsm_worker_posix
	install -d -m 755 $(DESTDIR)$(LIBDIR)/lcap/policies
	for name in $(POLICIES); do install -m 755 \
		$(OUT)/liblcap_policy_$$(echo $$name | tr - _).so \
		$(DESTDIR)$(LIBDIR)/lcap/policies/$$name.so || exit 1; done
	install -D -m 644 include/lcap_policy.h $(DESTDIR)$(PREFIX)/include/lcap_policy.h
	DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' LIBDIR='$(LIBDIR)' OUT='$(OUT)' CC='$(CC)' \
		packaging/install-client.sh
	install -d -m 755 $(DESTDIR)/etc/lcap
	install -m 644 packaging/lcapd.toml $(DESTDIR)/etc/lcap/lcapd.toml.sample
	install -m 644 packaging/upcall.toml $(DESTDIR)/etc/lcap/upcall.toml.sample
	install -m 644 packaging/worker_posix.toml $(DESTDIR)/etc/lcap/worker_posix.toml.sample
	install -d -m 755 $(DESTDIR)$(PREFIX)/lib/systemd/system
	for unit in packaging/systemd/*.service; do \
		sed -e 's|@SBINDIR@|$(PREFIX)/sbin|' -e 's|@BINDIR@|$(PREFIX)/bin|' "$$unit" \
			> $(DESTDIR)$(PREFIX)/lib/systemd/system/$$(basename "$$unit") || exit 1; done
	install -d -m 700 $(DESTDIR)/var/lib/lcap $(DESTDIR)/var/spool/lcap-hsm
	install -d -m 755 $(DESTDIR)$(PREFIX)/share/lcap/examples
	install -m 644 packaging/examples/* packaging/grafana/*.json packaging/prometheus/*.yml \
		packaging/telegraf-hsm.conf $(DESTDIR)$(PREFIX)/share/lcap/examples
	$(MAKE) --no-print-directory install-manual OUT='$(OUT)' SHARE='$(DESTDIR)$(PREFIX)/share'

# Pages and completions come from the programs, so they fit them.
SHARE ?= $(DESTDIR)$(PREFIX)/share
install-manual:
	@if command -v go-md2man >/dev/null; then packaging/man.sh '$(OUT)' '$(SHARE)/man'; \
	else echo 'no go-md2man: manual pages are not installed' >&2; fi
	install -d -m 755 $(SHARE)/bash-completion/completions $(SHARE)/zsh/site-functions \
		$(SHARE)/fish/vendor_completions.d
	$(OUT)/lcap completions bash > $(SHARE)/bash-completion/completions/lcap
	$(OUT)/lcap completions zsh > $(SHARE)/zsh/site-functions/_lcap
	$(OUT)/lcap completions fish > $(SHARE)/fish/vendor_completions.d/lcap.fish

wheel:           ## the Python package in target/wheel (needs pip)
	python3 -m pip wheel -q --no-deps --wheel-dir $(TARGET)/wheel ./python

deb: build       ## Debian packages in target/deb
	OUT='$(OUT)' CC='$(CC)' packaging/deb/build.sh $(TARGET)/deb

rpm: build       ## RPM packages in target/rpm
	OUT='$(OUT)' CC='$(CC)' packaging/rpm/build.sh $(TARGET)/rpm

test-packages: deb rpm  ## install, start, use and remove the packages on a bare Debian (root, network, minutes)
	packaging/test-packages.sh $(TARGET)

test-systemd: build  ## try the units under a real systemd, on an overlay of this machine (root, half a minute)
	OUT='$(OUT)' packaging/test-systemd.sh

clean:           ## remove everything that was built
	$(CARGO) clean
