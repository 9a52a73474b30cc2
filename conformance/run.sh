#!/bin/bash
# Runs the upstream conformance suite on a cluster of Stolos; see README.md beside this file.
set -euo pipefail
cd "$(dirname "$0")"

WORK=${WORK:-${STOLOS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/stolos}/conformance}
OUT=${OUT:-$WORK/results}
PROCS=${PROCS:-10}
BIN=$WORK/bin
TREES=$WORK/trees
LAYERS=$WORK/layers

die() { echo "run.sh: $*" >&2; exit 1; }
say() { echo "run.sh: $*" >&2; }

# --- programs -----------------------------------------------------------------------------------------------------

module() { go list -mod=readonly -m -f '{{.Dir}}' "$1"; }

programs() {
  local version flags images
  version=$(go list -mod=readonly -m -f '{{.Version}}' k8s.io/kubernetes)
  [ "$(cat "$WORK/built" 2>/dev/null)" != "$(cat go.mod go.sum | sha256sum)" ] || return 0
  say "compiling the suite of Kubernetes $version (several minutes)"
  mkdir -p "$BIN"
  IFS=. read -r major minor _ <<<"${version#v}"
  flags="-s -w -X k8s.io/component-base/version.gitVersion=$version -X k8s.io/component-base/version.gitMajor=$major"
  flags+=" -X k8s.io/component-base/version.gitMinor=$minor -X k8s.io/client-go/pkg/version.gitVersion=$version"
  export CGO_ENABLED=0 GOFLAGS=-mod=readonly
  go build -trimpath -buildvcs=false -ldflags "$flags" -o "$BIN/" tool
  go test -c -trimpath -ldflags "$flags" -o "$BIN/e2e.test" k8s.io/kubernetes/test/e2e
  images=$(module k8s.io/kubernetes)/test/images
  go build -trimpath -o "$BIN/nnp" "$images/nonewprivs/nnp.go"
  cat go.mod go.sum | sha256sum >"$WORK/built"
}

# Programs of ours: stolos, stolos-build.
ours() { echo "$(cd .. && realpath -m "$(scripts/target-dir)")/$1"; }
upstream() { "$(ours stolos-build)" --repository "$PWD/.." --json upstream "$1" | jq -r .bin; }

# --- layers -------------------------------------------------------------------------------------------------------

# One Debian tree under all images: what upstream's have from Alpine and others.
base_layer() {
  [ -s "$LAYERS/base.tar" ] && return
  say "making the base of the images from Debian packages"
  mkdir -p "$LAYERS"
  mmdebstrap --quiet --variant=minbase --format=tar \
    --include=bash,bind9-dnsutils,busybox,ca-certificates,curl,iperf,iproute2,netcat-openbsd,nginx-light,procps,socat,util-linux \
    --customize-hook='mkdir -p "$1/opt/busybox" && for a in $(chroot "$1" busybox --list); do ln -sf /usr/bin/busybox "$1/opt/busybox/$a"; done' \
    --customize-hook='rm -f "$1/opt/busybox/nc"' \
    --customize-hook='chroot "$1" useradd --uid 1000 --create-home user-defined-in-image' \
    --customize-hook='chroot "$1" groupadd --gid 50000 group-defined-in-image' \
    --customize-hook='chroot "$1" usermod --append --groups group-defined-in-image user-defined-in-image' \
    --customize-hook='rm -rf "$1"/var/lib/apt/lists/* "$1"/usr/share/doc "$1"/usr/share/man "$1"/usr/share/locale' \
    trixie "$LAYERS/base.tar.new"
  mv "$LAYERS/base.tar.new" "$LAYERS/base.tar"
}

# Everything in /bin is busybox, as in upstream's image; tests call /bin/sysctl and compare the words of /bin/sh. But upstream's shell also hands
# its environment on as it is, names such as `data-1` included, and of Debian's shells only bash does: it is the `sh` that is looked up by name.
shell_tree() {
  local one
  mkdir -p "$1/opt/shell" "$1/usr/bin"
  ln -s /bin/bash "$1/opt/shell/sh"
  for one in $(tar --list --file "$LAYERS/base.tar" | sed -n 's#^\./opt/busybox/\(..*\)#\1#p'); do
    [ "$one" = busybox ] || ln -s busybox "$1/usr/bin/$one"
  done
}

# A layer of the tree that the rest of the arguments makes in its first argument.
layer() { # NAME FUNCTION
  local tree=$TREES/$1
  rm -rf "$tree"
  mkdir -p "$tree"
  "$2" "$tree"
  tar --create --file "$LAYERS/$1.tar" --directory "$tree" --owner 0 --group 0 --numeric-owner --sort name --mtime @0 .
}

agnhost_tree() {
  local images
  images=$(module k8s.io/kubernetes)/test/images
  mkdir -p "$1/uploads" "$1/usr/local/bin" "$1/var/registry"
  cp "$BIN/agnhost" "$1/agnhost"
  ln -s agnhost "$1/agnhost-2"
  ln -s /usr/bin/iperf "$1/usr/local/bin/iperf"
  cp "$COREDNS" "$1/coredns"
  cp "$images/agnhost/porter/localhost.crt" "$images/agnhost/porter/localhost.key" "$1/"
  chmod u+w "$1"/localhost.*
  registry_tree "$1/var/registry/pause"
}

# What agnhost's fake-registry-server serves: a pause image in the layout of a registry's storage.
registry_tree() {
  local digest manifest one
  put() { # KIND, content on standard input; prints the digest
    local content=$WORK/blob sum
    cat >"$content"
    sum=$(sha256sum <"$content")
    sum=${sum%% *}
    mkdir -p "$ROOT/$1/sha256/${sum:0:2}/$sum"
    cp "$content" "$ROOT/$1/sha256/${sum:0:2}/$sum/data"
    echo "sha256:$sum"
  }
  ROOT=$1
  manifest=$(crane manifest "$R/pause:$PAUSE")
  digest=$(printf %s "$manifest" | put manifests)
  for one in $(jq -r '.config.digest, .layers[].digest' <<<"$manifest"); do
    crane blob "$R/pause@$one" | put blobs >/dev/null
  done
  jq -n --arg d "$digest" --arg m "$(jq -r .mediaType <<<"$manifest")" --argjson s "${#manifest}" \
    '{schemaVersion: 2, mediaType: "application/vnd.docker.distribution.manifest.list.v2+json",
      manifests: [{digest: $d, mediaType: $m, size: $s, platform: {architecture: "amd64", os: "linux"}}]}' |
    put manifests >"$ROOT/manifests/testing"
}

picture_tree() { # for kitten and nautilus
  local images
  images=$(module k8s.io/kubernetes)/test/images
  cp "$images/$PICTURE/html/"* "$1/"
  chmod -R u+w "$1"
  # A test of image volumes looks for the name of upstream's base in this file.
  mkdir -p "$1/etc"
  echo 'NAME="Alpine Linux"' >"$1/etc/os-release"
}

nnp_tree() { mkdir -p "$1/usr/local/bin" && cp "$BIN/nnp" "$1/usr/local/bin/nnp" && chmod 4755 "$1/usr/local/bin/nnp"; }
coredns_tree() { cp "$COREDNS" "$1/coredns"; }
etcd_tree() { mkdir -p "$1/usr/local/bin" && cp "$(upstream etcd)/etcd" "$1/usr/local/bin/etcd"; }
sample_tree() { cp "$BIN/sample-apiserver" "$1/sample-apiserver"; }

# --- images -------------------------------------------------------------------------------------------------------

crane() { "$BIN/crane" "$@"; }

image() { # NAME:TAG LAYERS MUTATIONS…
  local ref=$R/$1 layers=() one
  for one in $2; do layers+=(-f "$LAYERS/$one.tar"); done
  crane append "${layers[@]}" -t "$ref" >/dev/null 2>&1
  # Each image has its own digest: a kubelet reports one name of two that share one.
  crane mutate "$ref" -t "$ref" --set-platform linux/amd64 --label "stolos.conformance=$1" "${@:3}" >/dev/null 2>&1
  say "image $1"
}

PATH_LAST=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/busybox
PATH_FIRST=PATH=/opt/shell:/opt/busybox:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

# The images that the suite names and its [Conformance] tests use, under the names it gives them.
images() {
  local list ref name
  list=$("$BIN/e2e.test" --list-images | grep '^registry.k8s.io/')
  COREDNS=$(upstream coredns)/coredns
  PAUSE=$(sed -n 's#^registry.k8s.io/pause:##p' <<<"$list" | tail -n1)
  base_layer
  pause_image
  layer shell shell_tree
  layer agnhost agnhost_tree
  layer nnp nnp_tree
  layer coredns coredns_tree
  layer etcd etcd_tree
  layer sample sample_tree
  PICTURE=kitten layer kitten picture_tree
  PICTURE=nautilus layer nautilus picture_tree
  for ref in $list; do
    name=${ref#registry.k8s.io/}
    case $name in
    e2e-test-images/agnhost:*) image "$name" "base agnhost" --entrypoint /agnhost --cmd pause --env "$PATH_LAST" ;;
    e2e-test-images/kitten:*) image "$name" "base agnhost kitten" --entrypoint /agnhost --cmd test-webserver --env "$PATH_LAST" ;;
    e2e-test-images/nautilus:*) image "$name" "base agnhost nautilus" --entrypoint /agnhost --cmd test-webserver --env "$PATH_LAST" ;;
    e2e-test-images/busybox:*) image "$name" "base shell" --cmd sh --env "$PATH_FIRST" ;;
    e2e-test-images/nonroot:*) image "$name" "base shell" --user 1234 --cmd sh --env "$PATH_FIRST" ;;
    e2e-test-images/nonewprivs:*) image "$name" "base nnp" --cmd nnp --env "$PATH_LAST" ;;
    e2e-test-images/glibc-dns-testing:*) image "$name" "base coredns" --cmd bash --env "$PATH_LAST" ;;
    e2e-test-images/nginx:*) image "$name" base --cmd "nginx,-g,daemon off;" --env "$PATH_LAST" ;;
    e2e-test-images/sample-apiserver:*) image "$name" "base sample" --entrypoint /sample-apiserver --env "$PATH_LAST" ;;
    etcd:*) image "$name" "base etcd" --cmd etcd --env "$PATH_LAST" ;;
    esac
  done
}

# Ours, which is what every pod of the cluster stands on.
pause_image() {
  local archive
  archive=$("$(ours stolos-build)" --repository "$PWD/.." --json images | jq -r '.images[] | select(.name | test("/pause:")) | .path')
  rm -rf "$TREES/pause"
  mkdir -p "$TREES/pause"
  tar --extract --file "$archive" --directory "$TREES/pause"
  crane push "$TREES/pause" "$R/pause:$PAUSE" >/dev/null 2>&1
  say "image pause:$PAUSE"
}

# --- registry and mirror ------------------------------------------------------------------------------------------

# The registry keeps manifests in memory, so images are pushed at every start; layers stay on disk.
registry() {
  local address=${R%:*}
  mkdir -p "$WORK/registry"
  "$BIN/crane" registry serve --address "$R" --disk "$WORK/registry" >"$WORK/registry.log" 2>&1 &
  REGISTRY=$!
  trap 'kill "$REGISTRY" 2>/dev/null || true' EXIT
  for _ in $(seq 100); do
    curl --silent --fail "http://$R/v2/" >/dev/null && return
    kill -0 "$REGISTRY" 2>/dev/null || die "the registry did not start on $address: $(tail -n3 "$WORK/registry.log")"
    sleep 0.1
  done
  die "the registry does not answer on $R"
}

# Every node asks our registry for what registry.k8s.io has: an ordinary mirror, written where containerd looks.
mirror() {
  kubectl apply -f - <<Y >/dev/null
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: conformance-mirror, namespace: kube-system, labels: {app: conformance-mirror}}
spec:
  selector: {matchLabels: {app: conformance-mirror}}
  template:
    metadata: {labels: {app: conformance-mirror}}
    spec:
      tolerations: [{operator: Exists}]
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: 0
      containers:
      - name: write
        image: stolos.local/busybox:1
        imagePullPolicy: Never
        command:
        - sh
        - -c
        - |
          mkdir -p /certs.d/registry.k8s.io
          printf 'server = "http://$R"\n[host."http://$R"]\n  capabilities = ["pull", "resolve"]\n' >/certs.d/registry.k8s.io/hosts.toml
          touch /tmp/written
          exec sleep 2147483647
        readinessProbe: {exec: {command: [test, -e, /tmp/written]}, periodSeconds: 1}
        volumeMounts: [{name: certs, mountPath: /certs.d}]
      volumes: [{name: certs, hostPath: {path: /etc/containerd/certs.d, type: DirectoryOrCreate}}]
Y
  kubectl rollout status --timeout=60s -n kube-system daemonset/conformance-mirror >/dev/null
  # The suite wants system pods, not ours: what was written stays.
  kubectl delete -n kube-system daemonset/conformance-mirror --wait=true >/dev/null
}

# --- the suite ----------------------------------------------------------------------------------------------------

suite() { # NAME PROCS FOCUS SKIP
  local start=$SECONDS
  mkdir -p "$OUT/$1"
  "$BIN/ginkgo" --procs="$2" --timeout=3h --no-color --silence-skips --output-interceptor-mode=none \
    --focus="$3" --skip="$4" --json-report=report.json --output-dir="$OUT/$1" "$BIN/e2e.test" -- \
    --provider=skeleton --disable-log-dump --kubeconfig="$KUBECONFIG" >"$OUT/$1/log" 2>&1 || true
  jq -r --arg name "$1" --arg seconds "$((SECONDS - start))" '[.[].SpecReports[]? | select(.LeafNodeType == "It" and .State != "skipped") | .State]
    | "\($name): \(map(select(. == "passed")) | length) of \(length) passed, \($seconds) s"' "$OUT/$1/report.json"
  jq -r '.[].SpecReports[]? | select(.State | IN("passed", "skipped", "pending") | not) | "  \(.State): \(.LeafNodeText)"' "$OUT/$1/report.json"
}

main() {
  local cluster=${1:-} focus=${2:-} tool
  [ -n "$cluster" ] || die "usage: run.sh CLUSTER [FOCUS]"
  for tool in go jq curl kubectl mmdebstrap; do command -v "$tool" >/dev/null || die "needs $tool"; done
  mkdir -p "$WORK" "$OUT"
  programs
  export KUBECONFIG=$WORK/kubeconfig
  (umask 077 && "$(ours stolos)" get-credentials "$cluster" --json >"$KUBECONFIG")
  # The registry listens where Stolos itself does, which is an address that machines reach.
  R=${REGISTRY_ADDRESS:-$(sed -n 's#^api: *"\{0,1\}https://\([^:/"]*\).*#\1#p' "${PKS_HOME:-$HOME/.pks}/creds.yml"):5000}
  registry
  images
  mirror
  if [ -n "$focus" ]; then
    suite chosen "$PROCS" "$focus" '^$'
  else
    suite parallel "$PROCS" '\[Conformance\]' '\[Serial\]'
    suite serial 1 '\[Serial\].*\[Conformance\]|\[Conformance\].*\[Serial\]' '^$'
  fi
}

main "$@"
