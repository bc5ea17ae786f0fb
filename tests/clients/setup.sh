#!/usr/bin/env bash
# Installs the client libraries that tests/tests/client_matrix.rs runs: tests/clients/setup.sh
#
# They go to CHRONIK_TEST_CLIENTS, by default ${XDG_CACHE_HOME:-~/.cache}/chronik-test-clients, in the versions that the
# lock files beside this script pin. What is there already is left alone. What cannot be installed (no runtime, no
# network) is said here and again by the tests, which then skip its clients: this script fails for nothing but a mistake
# of its own. Each ecosystem has CHRONIK_TEST_CLIENTS_SECONDS, by default 300.
#
# With --packages it also installs runtimes that are missing, by apt-get, as root.
set -euo pipefail
cd "$(dirname "$0")"
here=$PWD
dir=${CHRONIK_TEST_CLIENTS:-${XDG_CACHE_HOME:-$HOME/.cache}/chronik-test-clients}
seconds_max=${CHRONIK_TEST_CLIENTS_SECONDS:-300}
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)

# What an installation was made from. The tests compare it, so that a changed lock file is never tested with old jars.
locks() {
  case $1 in
    java) cat java/pom.xml java/jars.sha256 ;;
    python) cat python/requirements.txt ;;
    node) cat node/package-lock.json ;;
    go) cat go/go.mod go/go.sum ;;
  esac
}

need() {
  local tool
  for tool in "$@"; do
    command -v "$tool" >/dev/null || { echo "$tool not found"; return 1; }
  done
}

install_packages() {
  local -A package_of=([java]=default-jdk-headless [mvn]=maven [node]=nodejs [npm]=npm [go]=golang-go)
  local missing=() tool
  for tool in "${!package_of[@]}"; do
    command -v "$tool" >/dev/null || missing+=("${package_of[$tool]}")
  done
  python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
  [ ${#missing[@]} -gt 0 ] || return 0
  local sudo=()
  [ "$(id -u)" = 0 ] || sudo=(sudo -n)
  echo "apt-get install ${missing[*]}"
  "${sudo[@]}" timeout "$seconds_max" apt-get update -q &&
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive timeout $((2 * seconds_max)) \
      apt-get install -q -y --no-install-recommends "${missing[@]}"
}

# Each of these prints, last, why it failed.

install_java() {
  need java mvn || return 1
  local version
  for version in $(sed 's|.* ||; s|/.*||' java/jars.sha256 | sort -u); do
    mvn -q -B -f java/pom.xml -Dkafka.version="$version" -DoutputDirectory="$dir/java/$version" \
      org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies || return 1
  done
  (cd "$dir/java" && sha256sum --check --quiet "$here/java/jars.sha256")
}

install_python() {
  need python3 || return 1
  python3 -m venv --clear "$dir/python/venv" &&
    "$dir/python/venv/bin/python" -m pip install -q --require-hashes -r python/requirements.txt
}

install_node() {
  need node npm || return 1
  mkdir -p "$dir/node" && cp node/package.json node/package-lock.json "$dir/node/" &&
    (cd "$dir/node" && npm ci --ignore-scripts --no-audit --no-fund)
}

install_go() {
  need go || return 1
  # The build fills the cache that the tests' own builds take from, without network.
  export GOMODCACHE=$dir/go/mod GOCACHE=$dir/go/build GOFLAGS=-mod=readonly
  mkdir -p "$dir/go/bin" && cd go && go build -o "$dir/go/bin/" ./...
}

install() {
  local name=$1 log=$dir/$1.log
  mkdir -p "$dir/$name"
  if [ -f "$dir/$name/ready" ] && locks "$name" | cmp -s - "$dir/$name/ready"; then
    echo "$name: there already"
    return
  fi
  rm -f "$dir/$name/ready" "$dir/$name/failed"
  if timeout "$seconds_max" "$here/setup.sh" --only "$name" >"$log" 2>&1; then
    locks "$name" >"$dir/$name/ready"
    echo "$name: installed"
  else
    local status=$? why
    why=$(grep -v '^ *$' "$log" | tail -n 1 | cut -c1-200) || why="it said nothing"
    [ $status != 124 ] || why="not done within $seconds_max s"
    echo "$why" >"$dir/$name/failed"
    echo "SKIPPED CLIENTS: $name: $why (all of it in $log)"
  fi
}

case ${1:-} in
  --only)
    "install_$2"
    exit
    ;;
  --packages) install_packages || echo "the packages could not be installed" ;;
  "") ;;
  *) echo "usage: setup.sh [--packages]" >&2; exit 2 ;;
esac
echo "clients in $dir"
for name in java python node go; do install "$name" & done
wait
