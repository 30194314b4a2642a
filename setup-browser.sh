#!/usr/bin/env bash
# What dash.js in a real browser needs: Debian's Chromium, playwright, dash.js. Run ./setup.sh first.
# Safe to run again; nothing is fetched twice. Nothing is ever loaded from the net while playing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

DASHJS_VERSION=5.2.1
DASHJS_FILE=package/dist/modern/umd/dash.all.min.js
# sha512 of the package as npm writes it in a lock file, and sha256 of the one file that is used.
DASHJS_INTEGRITY=axcJmLeJCTJMLUfQRErUJB1KOiU5iHF+DMLBc3FKeox1HPYtGUQlC6Xm5Mm6vhBUR3CHHLIPOqw0JDIqMtP+Dw==
DASHJS_SHA256=3a22b1f4576ab294f41e56f156cec7972a5f83edda379416778293ff22d2eb49
VENDOR=player/page/vendor

say() { printf '%s\n' "$*" >&2; }
die() { say "setup-browser: $*"; exit 1; }
has() { command -v "$1" >/dev/null; }

install_debian_packages() {
    local missing=() as_root=()
    has chromium || has chromium-browser || has google-chrome-stable || has google-chrome ||
        missing+=(chromium)
    has npm || is_dashjs_there || missing+=(npm)
    [ "${#missing[@]}" -gt 0 ] || return 0
    if [ "$(id -u)" -ne 0 ]; then
        has sudo || die "please install as root: apt-get install ${missing[*]}"
        as_root=(sudo)
    fi
    has apt-get || die "please install with your package manager: ${missing[*]}"
    say "Installing Debian packages: ${missing[*]}"
    "${as_root[@]}" apt-get -qq update &&
        "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
            apt-get -qq install --yes --no-install-recommends "${missing[@]}" >/dev/null ||
        die "apt-get failed; please install: ${missing[*]}"
}

is_dashjs_there() {
    echo "$DASHJS_SHA256  $VENDOR/${DASHJS_FILE##*/}" | sha256sum --check --status 2>/dev/null
}

fetch_dashjs() {
    local folder package found
    is_dashjs_there && return 0
    say "Fetching dash.js $DASHJS_VERSION"
    folder=$(mktemp -d)
    # shellcheck disable=SC2064  # the folder of now is meant
    trap "rm -rf '$folder'" EXIT
    npm pack "dashjs@$DASHJS_VERSION" --silent --pack-destination "$folder" >/dev/null ||
        die "npm found no dashjs@$DASHJS_VERSION; is there a network?"
    package=$folder/dashjs-$DASHJS_VERSION.tgz
    found=$(openssl dgst -sha512 -binary "$package" | base64 --wrap=0)
    [ "$found" = "$DASHJS_INTEGRITY" ] || die "dashjs@$DASHJS_VERSION is not the package expected"
    tar -xzf "$package" -C "$folder" "$DASHJS_FILE" package/LICENSE.md
    mkdir -p "$VENDOR"
    mv "$folder/package/LICENSE.md" "$VENDOR/dashjs-LICENSE.md"
    mv "$folder/$DASHJS_FILE" "$VENDOR/"
    is_dashjs_there || die "$DASHJS_FILE is not the file expected"
}

install_debian_packages
.venv/bin/python -c 'import playwright' 2>/dev/null ||
    .venv/bin/python -m pip --disable-pip-version-check install --quiet --editable '.[browser]'
fetch_dashjs
say "The browser is ready: [player] kind = \"dashjs\", testbed watch"
