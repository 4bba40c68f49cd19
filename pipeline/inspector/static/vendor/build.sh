#!/usr/bin/env bash
# Makes what lies here anew, from npm's packages at the versions of README.md. Nobody needs it to run or to test the inspector.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cd "$work"
printf '{"private": true, "type": "module"}\n' > package.json
npm install --silent --no-audit --no-fund \
    esbuild@0.28.2 vega@6.4.0 vega-lite@6.5.0 vega-interpreter@2.3.2 wavesurfer.js@8.0.1
cp "$here/charts_entry.js" .
npx esbuild charts_entry.js --bundle --minify --format=iife --target=es2022 --legal-comments=none --outfile="$here/charts.js"
npx esbuild node_modules/wavesurfer.js/dist/wavesurfer.esm.js --minify --format=esm --target=es2022 --legal-comments=none \
    --outfile="$here/wavesurfer.js"
cat node_modules/{vega,vega-lite,vega-interpreter}/LICENSE > "$here/LICENSE.vega"
cp node_modules/wavesurfer.js/LICENSE "$here/LICENSE.wavesurfer"
cd "$here" && sha256sum charts.js wavesurfer.js > SHA256SUMS
