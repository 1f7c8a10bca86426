#!/bin/sh
# KubeVirt's command of the container pr-helper. Its arguments are those of the helper: -k SOCKET.
set -e

# KubeVirt has the socket of the host's multipathd here. The helper passes the variable on to libmpathpersist.
export MULTIPATH_SOCKET_NAME="${MULTIPATH_SOCKET_NAME:-/var/run/kubevirt/daemons/pr/multipathd.socket}"

exec /usr/bin/qemu-pr-helper "$@"
