# What a developer runs. `make test` brings what is missing and runs everything.

CARGO_BUILD_JOBS ?= 2
export CARGO_BUILD_JOBS

.PHONY: test ci setup fmt lint doc features deny bench bench-idle mutations chaos soak screenshots fuzz

# The tests' own needs: a Redis server, a test runner, a browser and its driver, and Python packages: a Procfile
# runner, clients of Redis and of OpenAI, a tester of descriptions. And what checks the dependency tree.
setup:
	./tests/setup.sh

test: setup
	PATH="$(CURDIR)/target/venv/bin:$$PATH" cargo nextest run --no-fail-fast
	cargo test --doc

ci: fmt lint doc features deny test

fmt:
	cargo fmt --check

lint:
	cargo clippy --all-targets -- -D warnings

doc:
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps

# What an application embeds: producer and listener alone.
features:
	cargo check --lib --no-default-features

# What the dependency tree may hold: deny.toml. Advisories are looked at where their database is at hand, which
# `cargo deny fetch db` brings.
DENY = PATH="$(CURDIR)/target/tools/deny/bin:$$PATH" cargo deny
deny: setup
	$(DENY) check bans licenses sources
	if [ -d "$${CARGO_HOME:-$$HOME/.cargo}/advisory-dbs" ]; then $(DENY) check --disable-fetch advisories; fi

# Switches off one mechanism after the other, and shows which test goes red for it.
mutations: setup
	./tests/mutations.py

# What is promised in figures, each on a private Redis; fails where a budget is missed.
bench: setup
	cargo build --release --bins
	target/release/millstream bench promotion --check
	target/release/millstream bench cancel --check
	target/release/millstream bench ttft --check
	target/release/millstream bench recovery --check

# A hundred thousand jobs that are kept for a minute: the curve of Redis's memory.
soak: setup
	PATH="$(CURDIR)/target/venv/bin:$$PATH" cargo nextest run --run-ignored only --no-capture hundred_thousand_jobs

# Commands of an idle worker and an idle listener over five minutes, counted by the server.
bench-idle: setup
	PATH="$(CURDIR)/target/venv/bin:$$PATH" cargo nextest run --run-ignored only --no-capture idle

# Real processes under random faults for SECONDS; the same SEED gives the same jobs and faults.
SECONDS ?= 60
SEED ?= 1
chaos: setup
	CHAOS_SECONDS=$(SECONDS) CHAOS_SEED=$(SEED) PATH="$(CURDIR)/target/venv/bin:$$PATH" \
	cargo nextest run --release --profile chaos --test chaos --no-capture under_random_faults

# Bytes without end for what reads the bytes of others, each for SECONDS. No nightly compiler is needed: there
# is no unsafe code here for a sanitizer to watch, and coverage is an option that the stable one has, too.
FUZZ = RUSTC_BOOTSTRAP=1 PATH="$(CURDIR)/target/tools/bin:$$PATH" cargo fuzz
TARGETS = job event event_id frame secrets answer body
fuzz: SECONDS = 20
fuzz: target/tools/bin/cargo-fuzz
	cd fuzz && $(FUZZ) build --sanitizer none
	cd fuzz && for target in $(TARGETS); do \
	    mkdir -p corpus/$$target; \
	    $(FUZZ) run --sanitizer none $$target corpus/$$target seeds/$$target -- -dict=words.dict -timeout=5 \
	        -max_total_time=$(SECONDS) -print_final_stats=1 || exit 1; \
	done

target/tools/bin/cargo-fuzz:
	cargo install --quiet --locked --root target/tools cargo-fuzz

# The console page as it looks, from the browser's tests.
screenshots: setup
	SCREENSHOTS=docs/screenshots PATH="$(CURDIR)/target/venv/bin:$$PATH" cargo nextest run console::
	! command -v pngquant >/dev/null || pngquant --force --skip-if-larger --ext .png docs/screenshots/*.png
