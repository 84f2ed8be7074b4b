#!/usr/bin/env bash
# Build the image of a target (cpu unless named) with buildah and see that it is what docs/deployment.md says:
# no pip or compiler inside, another user than root, and ready over a root file system mounted read-only.
#   deploy/check-image.sh [cpu|triton-client] [buildah options, such as --pull-never]
# Needs root and Linux, but no engine: the steps run in a chroot, and so does the service.
set -euo pipefail
cd "$(dirname "$0")/.."
export BUILDAH_ISOLATION=${BUILDAH_ISOLATION:-chroot} # and STORAGE_DRIVER=vfs where overlay is not to be had
target=${1:-cpu}
shift || true
image=alignet-serve:$target
port=${PORT:-18000}

buildah build --layers --target "$target" -t "$image" "$@" .
container=$(buildah from --pull-never "$image")
trap 'kill "${service:-}" 2>/dev/null || true; buildah umount "$container" >/dev/null; buildah rm "$container" >/dev/null' EXIT
root=$(buildah mount "$container")
user=$(buildah inspect --type image --format '{{.OCIv1.Config.User}}' "$image")

for tool in pip pip3 gcc cc make git; do
    if chroot "$root" /bin/sh -c "PATH=/opt/venv/bin:\$PATH command -v $tool" >/dev/null; then
        echo "$image holds $tool" >&2
        exit 1
    fi
done
[ "$user" = 10001:10001 ] || { echo "$image runs as '$user'" >&2; exit 1; }

# Its own mount namespace, in which the tree is read-only; the user and environment are the image's.
options=()
[ "$target" != triton-client ] || options=(--triton-url localhost:1)
mapfile -t environment < <(buildah inspect --type image --format '{{range .OCIv1.Config.Env}}{{println .}}{{end}}' "$image")
unshare --mount bash -c '
    mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && mount -t proc proc "$1/proc" 2>/dev/null || true
    if touch "$1/written" 2>/dev/null; then echo "the root is not read-only" >&2; exit 1; fi
    exec chroot --userspec=10001:10001 "$1" /usr/bin/env -i "${@:3}" ALIGNET_HOST=127.0.0.1 ALIGNET_PORT="$2" alignet-serve '"${options[*]-}" \
    - "$root" "$port" "${environment[@]}" &
service=$!

want=200
[ "$target" != triton-client ] || want=503 # ready only with a Triton; that it answers is what is seen here
for _ in $(seq 120); do
    code=$(curl -s -o /dev/null -w '%{http_code}' "http://127.0.0.1:$port/health/ready" || true)
    [ "$code" = 503 ] && [ "$target" = triton-client ] && live=$(curl -s "http://127.0.0.1:$port/health/live") && [ -n "$live" ] && break
    [ "$code" = "$want" ] && break
    kill -0 "$service" 2>/dev/null || { echo "$image ended" >&2; exit 1; }
    sleep 0.5
done
[ "$code" = "$want" ] || { echo "$image: /health/ready says $code" >&2; exit 1; }
if [ "$target" = cpu ]; then
    curl -sf "http://127.0.0.1:$port/odd-one-out" -F images=@docs/photos/cat.jpg -F images=@docs/photos/raccoon.jpg \
        -F images=@docs/photos/rocket.jpg | grep -q '"odd_one_out":2'
fi
kill -TERM "$service"
wait "$service"
echo "$image: $(du -sm "$root" | cut -f1) MB; no build tools, user $user, serves from a read-only root, exits 0 on SIGTERM"
