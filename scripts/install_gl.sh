#!/bin/sh
# Installs the GL libraries for off-screen rendering where this user may; otherwise says which to install.
packages="libegl1 libgl1 libgl1-mesa-dri libgles2 libosmesa6"
if command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
    echo "installing GL libraries: $packages"
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages >/dev/null
    exit $?
fi
if command -v apt-get >/dev/null 2>&1; then
    echo "Install the GL libraries and call make again:  sudo apt-get install -y $packages" >&2
elif command -v dnf >/dev/null 2>&1; then
    echo "Install the GL libraries and call make again:  sudo dnf install mesa-libEGL mesa-libGL mesa-dri-drivers" >&2
else
    echo "Install Mesa's EGL or OSMesa libraries with your system's package manager and call make again" >&2
fi
exit 1
