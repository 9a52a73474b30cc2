#!/bin/bash
# One master and one worker by hand; see README.md beside this file.
set -euo pipefail

NAME=${NAME:-byhand}
SUBNET=${SUBNET:-10.98.77}
WORK=${WORK:-$(mktemp -d /var/tmp/by-hand.XXXXXX)}
MASTER=$SUBNET.2
WORKER=$SUBNET.3
KUBECTL=

die() { echo "run.sh: $*" >&2; exit 1; }

remove() {
  local node
  for node in master worker; do
    runc kill "$NAME-$node" KILL 2>/dev/null || true
    for _ in $(seq 100); do
      runc delete --force "$NAME-$node" 2>/dev/null || true
      runc state "$NAME-$node" >/dev/null 2>&1 || break
      sleep 0.05
    done
    ip link del "$NAME-${node:0:1}" 2>/dev/null || true
    ip netns del "$NAME-$node" 2>/dev/null || true
    if mountpoint -q "$WORK/$node/rootfs"; then umount -R "$WORK/$node/rootfs"; fi
  done
  ip link del "$NAME" 2>/dev/null || true
  # Dying memory cgroups are busy for a moment after their last process.
  for _ in $(seq 40); do
    find /sys/fs/cgroup -depth -type d -path "*/$NAME-by-hand*" -exec rmdir {} + 2>/dev/null && break
    sleep 0.05
  done
  rm -rf "$WORK"
}

# --- certificates -------------------------------------------------------------------------------------------------

authority() { # NAME CN
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj "/CN=$2" \
    -keyout "$PKI/$1.key" -out "$PKI/$1.pem" 2>/dev/null
}

leaf() { # NAME CA SUBJECT [SAN]
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "$3" -keyout "$PKI/$1.key" 2>/dev/null |
    openssl x509 -req -days 30 -CA "$PKI/$2.pem" -CAkey "$PKI/$2.key" -set_serial "0x$(openssl rand -hex 8)" \
      -extfile <(echo "extendedKeyUsage=clientAuth,serverAuth${4:+
subjectAltName=$4}") -out "$PKI/$1.pem" 2>/dev/null
}

kubeconfig() { # NAME SERVER
  cat >"$PKI/$1.conf" <<X
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://$2:8443", certificate-authority: $3/ca.pem}}]
users: [{name: u, user: {client-certificate: $3/$1.pem, client-key: $3/$1.key}}]
contexts: [{name: c, context: {cluster: c, user: u}}]
current-context: c
X
}

certificates() {
  PKI=$WORK/pki
  mkdir -p "$PKI"
  authority etcd-ca etcd & authority ca kubernetes & authority front-ca front-proxy &
  openssl genrsa -out "$PKI/sa.key" 2048 2>/dev/null &
  wait
  local api=IP:127.0.0.1,IP:$MASTER,IP:10.100.200.1,DNS:localhost,DNS:kubernetes,DNS:kubernetes.default
  api=$api,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local
  leaf etcd etcd-ca /CN=etcd "IP:127.0.0.1,IP:$MASTER" &
  leaf etcd-client etcd-ca /CN=client &
  leaf apiserver ca /CN=kube-apiserver "$api" &
  leaf kubelet-client ca /CN=kube-apiserver-kubelet-client &
  leaf front front-ca /CN=front-proxy-client &
  leaf kcm ca /CN=system:kube-controller-manager IP:127.0.0.1 &
  leaf scheduler ca /CN=system:kube-scheduler IP:127.0.0.1 &
  leaf proxy ca /CN=system:kube-proxy &
  leaf master ca /O=system:nodes/CN=system:node:master "IP:$MASTER" &
  leaf worker ca /O=system:nodes/CN=system:node:worker "IP:$WORKER" &
  leaf admin ca /O=system:masters/CN=admin &
  wait
  openssl rsa -in "$PKI/sa.key" -pubout -out "$PKI/sa.pub" 2>/dev/null
  local inside=/etc/by-hand user
  for user in kcm scheduler master; do kubeconfig $user 127.0.0.1 $inside; done
  for user in worker proxy; do kubeconfig $user "$MASTER" $inside; done
  kubeconfig admin "$MASTER" "$PKI"
}

# --- machines -----------------------------------------------------------------------------------------------------

machine() { # NODE ADDRESS LAST-BYTE
  local node=$1 address=$2 dir=$WORK/$1 link="$NAME-${1:0:1}" caps mounts
  mkdir -p "$dir"/{upper,work,rootfs,var/lib,var/log}
  mount -t overlay overlay -o "lowerdir=$ROOTFS,upperdir=$dir/upper,workdir=$dir/work" "$dir/rootfs"
  ip netns add "$NAME-$node"
  ip link add "$link" type veth peer name eth0 netns "$NAME-$node"
  ip link set "$link" master "$NAME" up
  ip -n "$NAME-$node" -batch - <<X
link set lo up
addr add $address/24 dev eth0
link set eth0 up
route add default via $SUBNET.1
X
  images "$dir/var/lib/containerd"
  caps=$(capsh --print | sed -n 's/^Bounding set =//p' | tr a-z A-Z | jq -Rc 'split(",")')
  mounts=$(jq -nc --arg var "$dir/var" --arg pki "$PKI" --arg seed "$SEED" --arg work "$WORK" '
    def t(d; t; s; o): {destination: d, type: t, source: s, options: o};
    [ t("/proc"; "proc"; "proc"; []),
      t("/dev"; "tmpfs"; "tmpfs"; ["nosuid", "strictatime", "mode=755", "size=65536k"]),
      t("/dev/pts"; "devpts"; "devpts"; ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
      t("/dev/shm"; "tmpfs"; "shm"; ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
      t("/dev/mqueue"; "mqueue"; "mqueue"; ["nosuid", "noexec", "nodev"]),
      t("/sys"; "sysfs"; "sysfs"; ["nosuid", "noexec", "nodev"]),
      t("/sys/fs/cgroup"; "cgroup"; "cgroup"; ["nosuid", "noexec", "nodev", "relatime", "rw"]),
      t("/run"; "tmpfs"; "tmpfs"; ["nosuid", "nodev", "mode=755"]),
      t("/tmp"; "tmpfs"; "tmpfs"; ["nosuid", "nodev", "mode=1777"]),
      t("/var"; "bind"; $var; ["rbind", "rw"]),
      t("/var/seed"; "bind"; $seed; ["rbind", "ro"]),
      t("/opt/by-hand"; "bind"; ($work + "/bin"); ["rbind", "ro"]),
      t("/etc/by-hand"; "bind"; $pki; ["rbind", "ro"]) ]')
  jq -nc --arg node "$node" --argjson caps "$caps" --argjson mounts "$mounts" --arg netns "/var/run/netns/$NAME-$node" \
    --arg cgroup "/$NAME-by-hand-$node" --arg address "$address" --arg last "$3" --arg master "$MASTER" '
    def dev(p; ma; mi): {path: p, type: "c", major: ma, minor: mi, fileMode: 438, uid: 0, gid: 0};
    { ociVersion: "1.0.2", hostname: $node, root: {path: "rootfs"}, mounts: $mounts,
      process: { terminal: false, user: {uid: 0, gid: 0}, cwd: "/", args: ["/bin/bash", "/etc/by-hand/node.sh"],
        env: ["PATH=/opt/by-hand:/usr/sbin:/usr/bin:/sbin:/bin", "NODE=" + $node, "IP=" + $address, "LAST=" + $last, "MASTER=" + $master],
        capabilities: {bounding: $caps, effective: $caps, permitted: $caps, inheritable: $caps, ambient: $caps},
        rlimits: [{type: "RLIMIT_NOFILE", hard: 20000, soft: 20000}] },
      linux: { cgroupsPath: $cgroup, rootfsPropagation: "rshared", maskedPaths: [], readonlyPaths: [],
        namespaces: [{type: "pid"}, {type: "network", path: $netns}, {type: "ipc"}, {type: "uts"}, {type: "mount"}, {type: "cgroup"}],
        resources: {devices: [{allow: true, access: "rwm"}]},
        devices: [dev("/dev/kmsg"; 1; 11), dev("/dev/fuse"; 10; 229), dev("/dev/net/tun"; 10; 200)] } }' >"$dir/config.json"
  runc run --detach --bundle "$dir" "$NAME-$node" </dev/null >"$dir/var/log/node.log" 2>&1
}

# The databases are copied; blobs and unpacked snapshots stay in the seed, which the machine sees at /var/seed.
images() { # ROOT
  local part=io.containerd.snapshotter.v1.overlayfs one
  mkdir -p "$1/$part/snapshots"
  cp -a "$SEED/io.containerd.metadata.v1.bolt" "$1/"
  cp -a --symbolic-link "$SEED/io.containerd.content.v1.content" "$1/"
  # The links above name the seed where the host has it; in the machine it is elsewhere.
  find "$1/io.containerd.content.v1.content" -type l -printf '%p\0' | while IFS= read -r -d '' one; do
    ln -sf "/var/seed/${one#"$1/"}" "$one"
  done
  cp "$SEED/$part/metadata.db" "$1/$part/"
  for one in "$SEED/$part/snapshots"/*; do
    ln -s "/var/seed/$part/snapshots/${one##*/}" "$1/$part/snapshots/"
  done
}

# --- what runs in the machines ------------------------------------------------------------------------------------

node_script() {
  cat <<'NODE'
C=/etc/by-hand
L=/var/log
mount --make-rshared /
mkdir -p /var/lib/kubelet /var/log/pods /var/tmp /run/cni /etc/cni/net.d /etc/containerd/certs.d
[ -e /etc/resolv.conf ] || : >/etc/resolv.conf
[ -e /etc/hosts ] || echo "127.0.0.1 localhost" >/etc/hosts
[ -s /etc/machine-id ] || tr -d - </proc/sys/kernel/random/uuid >/etc/machine-id
echo 1 >/proc/sys/net/ipv4/ip_forward
for m in 2 3; do [ $m = $LAST ] || ip route replace 10.200.$m.0/24 via ${IP%.*}.$m; done
nft -f - <<X
table ip pods { chain postrouting { type nat hook postrouting priority srcnat;
  ip saddr 10.200.$LAST.0/24 ip daddr != { 10.200.0.0/16, ${IP%.*}.0/24 } masquerade; }; }
X
cat >/etc/cni/net.d/10-pods.conflist <<X
{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"bridge","bridge":"cni0","isGateway":true,"ipMasq":false,"hairpinMode":true,
"ipam":{"type":"host-local","dataDir":"/run/cni/networks","ranges":[[{"subnet":"10.200.$LAST.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}]}},
{"type":"portmap","backend":"nftables","capabilities":{"portMappings":true}}]}
X
cat >/etc/containerd/config.toml <<X
version = 3
disabled_plugins = ["io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.erofs", "io.containerd.snapshotter.v1.zfs", "io.containerd.nri.v1.nri"]
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "stolos.local/pause:3.10"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["/opt/by-hand"]
  conf_dir = "/etc/cni/net.d"
  use_internal_loopback = true
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
  BinaryName = "/usr/bin/crun"
  SystemdCgroup = false
X
cat >/etc/kubelet.yml <<X
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $IP
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: $C/ca.pem}}
authorization: {mode: Webhook}
cgroupDriver: cgroupfs
clusterDNS: [10.100.200.2]
clusterDomain: cluster.local
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
evictionHard: {imagefs.available: "0%", nodefs.available: "0%", nodefs.inodesFree: "0%"}
imageGCHighThresholdPercent: 100
failCgroupV1: false
failSwapOn: false
featureGates: {KubeletInUserNamespace: true}
maxOpenFiles: 20000
serializeImagePulls: false
tlsCertFile: $C/$NODE.pem
tlsPrivateKeyFile: $C/$NODE.key
$([ $NODE = master ] && echo 'registerWithTaints: [{key: node-role.kubernetes.io/control-plane, effect: NoSchedule}]')
X
cat >/etc/proxy.yml <<X
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
bindAddress: $IP
clusterCIDR: 10.200.0.0/16
hostnameOverride: $NODE
clientConnection: {kubeconfig: $C/proxy.conf}
conntrack: {maxPerCore: 0, tcpBeLiberal: true, tcpCloseWaitTimeout: 0s, tcpEstablishedTimeout: 0s}
nftables: {minSyncPeriod: 100ms, syncPeriod: 30s}
X

listening() { until (: <"/dev/tcp/$1/$2") 2>/dev/null; do sleep 0.02; done; }
# A program that ends is started again, whatever the reason.
always() { local log=$L/$1.log; shift; while :; do "$@" >>$log 2>&1; sleep 0.1; done; }

containerd >$L/containerd.log 2>&1 &
if [ $NODE = master ]; then
  etcd --name m --data-dir /var/lib/etcd --listen-client-urls https://127.0.0.1:2379 --advertise-client-urls https://127.0.0.1:2379 \
    --listen-peer-urls https://$IP:2380 --initial-advertise-peer-urls https://$IP:2380 --initial-cluster m=https://$IP:2380 \
    --client-cert-auth --trusted-ca-file $C/etcd-ca.pem --cert-file $C/etcd.pem --key-file $C/etcd.key \
    --peer-client-cert-auth --peer-trusted-ca-file $C/etcd-ca.pem --peer-cert-file $C/etcd.pem --peer-key-file $C/etcd.key \
    --heartbeat-interval 50 --election-timeout 250 --snapshot-count 10000 >$L/etcd.log 2>&1 &
  listening 127.0.0.1 2379
  GOGC=200 kube-apiserver --advertise-address=$IP --allow-privileged=true --authorization-mode=Node,RBAC --client-ca-file=$C/ca.pem \
    --enable-admission-plugins=NodeRestriction --etcd-servers=https://127.0.0.1:2379 --etcd-cafile=$C/etcd-ca.pem \
    --etcd-certfile=$C/etcd-client.pem --etcd-keyfile=$C/etcd-client.key --kubelet-certificate-authority=$C/ca.pem \
    --kubelet-client-certificate=$C/kubelet-client.pem --kubelet-client-key=$C/kubelet-client.key \
    --kubelet-preferred-address-types=InternalIP --profiling=false --proxy-client-cert-file=$C/front.pem \
    --proxy-client-key-file=$C/front.key --requestheader-allowed-names=front-proxy-client \
    --requestheader-client-ca-file=$C/front-ca.pem --requestheader-extra-headers-prefix=X-Remote-Extra- \
    --requestheader-group-headers=X-Remote-Group --requestheader-username-headers=X-Remote-User --secure-port=8443 \
    --service-account-issuer=https://kubernetes.default.svc.cluster.local --service-account-key-file=$C/sa.pub \
    --service-account-signing-key-file=$C/sa.key --service-cluster-ip-range=10.100.200.0/24 \
    --tls-cert-file=$C/apiserver.pem --tls-private-key-file=$C/apiserver.key >$L/kube-apiserver.log 2>&1 &
fi
# The host makes these files: when the API server serves, when it has taken the objects, when it is healthy.
until [ -e /var/serving ]; do sleep 0.02; done
always kubelet kubelet --config=/etc/kubelet.yml --kubeconfig=$C/$NODE.conf --hostname-override=$NODE --node-ip=$IP &
until [ -e /var/applied ]; do sleep 0.02; done
always kube-proxy kube-proxy --config=/etc/proxy.yml &
until [ -e /var/healthy ]; do sleep 0.02; done
if [ $NODE = master ]; then
  always kube-controller-manager kube-controller-manager --allocate-node-cidrs=false --authentication-kubeconfig=$C/kcm.conf \
    --authentication-skip-lookup=true --authorization-kubeconfig=$C/kcm.conf --bind-address=127.0.0.1 --client-ca-file=$C/ca.pem \
    --cluster-signing-cert-file=$C/ca.pem --cluster-signing-key-file=$C/ca.key --kube-api-qps=500 --kube-api-burst=1000 \
    --kubeconfig=$C/kcm.conf --leader-elect=false --profiling=false --root-ca-file=$C/ca.pem \
    --service-account-private-key-file=$C/sa.key --service-cluster-ip-range=10.100.200.0/24 --terminated-pod-gc-threshold=100 \
    --tls-cert-file=$C/kcm.pem --tls-private-key-file=$C/kcm.key --use-service-account-credentials=true &
  always kube-scheduler kube-scheduler --authentication-kubeconfig=$C/scheduler.conf --authentication-skip-lookup=true \
    --authorization-kubeconfig=$C/scheduler.conf --bind-address=127.0.0.1 --kube-api-qps=500 --kube-api-burst=1000 \
    --kubeconfig=$C/scheduler.conf --leader-elect=false --profiling=false --tls-cert-file=$C/scheduler.pem \
    --tls-private-key-file=$C/scheduler.key &
fi
while :; do wait; sleep 1; done
NODE
}

objects() {
  cat <<'X'
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: early-proxy}
rules:
- {apiGroups: [""], resources: [services, nodes], verbs: [get, list, watch]}
- {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}
- {apiGroups: [networking.k8s.io], resources: [servicecidrs], verbs: [list, watch]}
- {apiGroups: ["", events.k8s.io], resources: [events], verbs: [create, patch, update]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: early-proxy}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: early-proxy}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: 'system:kube-proxy'}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: kubelet-client}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: 'system:kubelet-api-admin'}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: kube-apiserver-kubelet-client}]
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: coredns, namespace: kube-system}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: 'system:coredns'}
rules:
- {apiGroups: [""], resources: [services, pods, namespaces], verbs: [list, watch]}
- {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: 'system:coredns'}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: 'system:coredns'}
subjects: [{kind: ServiceAccount, name: coredns, namespace: kube-system}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: coredns, namespace: kube-system}
data:
  Corefile: |
    .:53 {
        errors
        health
        ready
        kubernetes cluster.local in-addr.arpa ip6.arpa {
            pods insecure
            fallthrough in-addr.arpa ip6.arpa
        }
        cache 30
        loadbalance
    }
---
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system, labels: {k8s-app: kube-dns}}
spec:
  clusterIP: 10.100.200.2
  selector: {k8s-app: kube-dns}
  ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53, protocol: TCP}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: coredns, namespace: kube-system}
spec:
  replicas: 1
  selector: {matchLabels: {k8s-app: kube-dns}}
  template:
    metadata: {labels: {k8s-app: kube-dns}}
    spec:
      priorityClassName: system-cluster-critical
      serviceAccountName: coredns
      tolerations: [{key: node-role.kubernetes.io/control-plane, effect: NoSchedule}]
      dnsPolicy: Default
      containers:
      - name: coredns
        image: stolos.local/coredns:1.14.7
        args: [-conf, /etc/coredns/Corefile]
        volumeMounts: [{name: config, mountPath: /etc/coredns}]
        readinessProbe: {httpGet: {path: /ready, port: 8181}, periodSeconds: 1}
      volumes: [{name: config, configMap: {name: coredns}}]
X
}

pod() {
  cat <<'X'
apiVersion: v1
kind: Pod
metadata: {name: lookup}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  automountServiceAccountToken: false
  containers:
  - name: lookup
    image: stolos.local/busybox:1
    command:
    - sh
    - -c
    - 'while [ ! -e /tmp/answered ]; do (timeout 2 nslookup kubernetes.default.svc.cluster.local >/tmp/said 2>&1 && : >/tmp/answered) & sleep 0.1; done; echo answered'
X
}

# --- the run ------------------------------------------------------------------------------------------------------

now() { date +%s%3N; }

# Asks the API server as the administrator; fails when the status is not 200.
ask() { # PATH [CURL-OPTION…]
  curl --silent --fail --cacert "$PKI/ca.pem" --cert "$PKI/admin.pem" --key "$PKI/admin.key" "${@:2}" "https://$MASTER:8443$1"
}

says_ok() { ask "$1" --max-time 1 --output /dev/null; }

nodes_ready() {
  ask /api/v1/nodes --max-time 2 |
    jq -e '[.items[].status.conditions[]? | select(.type == "Ready" and .status == "True")] | length == 2' >/dev/null
}

pod_runs() { ask /api/v1/namespaces/default/pods/lookup --max-time 2 | jq -e '.status.phase == "Running"' >/dev/null; }

answered() { ask "/api/v1/namespaces/default/pods/lookup/log?follow=true" --no-buffer --max-time 60 | grep -q answered; }

until_ok() { # WHAT COMMAND…
  local what=$1 end=$(($(now) + 60000))
  shift
  until "$@" 2>/dev/null; do
    (($(now) < end)) || die "gave up waiting for $what; KEEP=1 keeps the logs"
    sleep 0.03
  done
}

# One directory with all programs, so that a machine needs one mount for them.
programs() {
  local wanted one dir
  mkdir -p "$WORK/bin"
  for wanted in etcd kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl containerd \
    containerd-shim-runc-v2 bridge host-local portmap; do
    one=
    while IFS= read -r -d : dir; do
      if [ -x "$dir/$wanted" ]; then one=$dir/$wanted; break; fi
    done <<<"$PROGRAMS:"
    [ -n "$one" ] || die "PROGRAMS has no $wanted"
    ln "$one" "$WORK/bin/$wanted" 2>/dev/null || cp "$one" "$WORK/bin/$wanted"
  done
  KUBECTL="$WORK/bin/kubectl --kubeconfig $WORK/pki/admin.conf"
}

main() {
  [ "$(id -u)" = 0 ] || die "needs root"
  local tool phase
  for tool in runc ip openssl jq capsh curl; do command -v $tool >/dev/null || die "needs $tool"; done
  [ -d "${ROOTFS:?}" ] && [ -d "${SEED:?}" ] || die "ROOTFS or SEED is no directory"
  [ -n "${KEEP:-}" ] || trap remove EXIT
  programs

  local begin start machines api nodes running answered
  begin=$(now)
  certificates
  node_script >"$PKI/node.sh"
  objects >"$WORK/objects.yml"
  pod >"$WORK/pod.yml"
  start=$(now)
  ip link add "$NAME" type bridge
  ip addr add "$SUBNET.1/24" dev "$NAME"
  ip link set "$NAME" up
  machine master "$MASTER" 2
  machine worker "$WORKER" 3
  machines=$(now)

  until_ok "the API server to serve" says_ok /version
  api=$(now)
  touch "$WORK"/{master,worker}/var/serving
  until_ok "the objects to be taken" $KUBECTL apply --validate=false -f "$WORK/objects.yml" >&2
  touch "$WORK"/{master,worker}/var/applied
  until_ok "both nodes to be Ready" nodes_ready
  nodes=$(now)
  until_ok "the API server to be healthy" says_ok /healthz
  touch "$WORK"/{master,worker}/var/healthy
  until_ok "the pod to be taken" $KUBECTL create --validate=false -f "$WORK/pod.yml" >&2
  until_ok "the pod to run" pod_runs
  running=$(now)
  until_ok "DNS to answer" answered
  answered=$(now)
  phase() { echo "\"$1_ms\":$(($2 - start))"; }
  echo "{\"certificates_ms\":$((start - begin)),$(phase machines "$machines"),$(phase api "$api"),$(phase nodes_ready "$nodes"),$(
    phase pod_running "$running"),$(phase dns_answers "$answered")}"
}

if [ "${1:-}" = down ]; then remove; else main; fi
