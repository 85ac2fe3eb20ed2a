#!/usr/bin/env bash
# Installs Chromium, which tests of pages start, from Debian's packages, where that is possible without a question: apt-get,
# and root or sudo without a password. Does nothing where a browser is installed. Fails where it can do nothing.
#   bash scripts/install_browser.sh
set -euo pipefail

for program in chromium google-chrome chromium-browser; do
    if command -v "$program" >/dev/null; then exit 0; fi
done
root=()
if [ "$(id -u)" -ne 0 ]; then root=(sudo -n); fi
apt=("${root[@]}" env DEBIAN_FRONTEND=noninteractive timeout 300
    apt-get -qq -o Acquire::Retries=0 -o Acquire::http::Timeout=20 -o Acquire::https::Timeout=20)
# the lists of packages may be there already, and new enough
if "${apt[@]}" install -y --no-install-recommends chromium >/dev/null 2>&1 ||
    { "${apt[@]}" update >/dev/null 2>&1 && "${apt[@]}" install -y --no-install-recommends chromium >/dev/null 2>&1; }; then
    echo "Chromium is installed, for the tests of pages"
else
    echo "Chromium could not be installed; the tests of pages are skipped. On Debian: apt-get install chromium" >&2
    exit 1
fi
