"""Renders one picture off screen, with EGL or else OSMesa; says what to install when neither works."""

import os
import subprocess
import sys

PROBE = """
import mujoco
model = mujoco.MjModel.from_xml_string(
    "<mujoco><worldbody><light pos='0 0 3'/><geom type='sphere' size='.3' rgba='1 0 0 1'/></worldbody></mujoco>"
)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 32, 32)
renderer.update_scene(data)
assert renderer.render().max() > 0, "the picture is black"
renderer.close()
"""


def works(backend: str | None) -> str:
    """Empty when rendering works, else the last line of the error."""
    env = dict(os.environ) if backend is None else {**os.environ, "MUJOCO_GL": backend}
    done = subprocess.run([sys.executable, "-c", PROBE], env=env, capture_output=True, text=True, timeout=120)
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["crashed"])[-1]


def main() -> int:
    if sys.platform == "darwin" or "MUJOCO_GL" in os.environ:
        backends = [None]
    else:
        backends = ["egl", "osmesa"]
    reasons = {backend: works(backend) for backend in backends}
    if not reasons[backends[0]]:
        return 0
    for backend, reason in reasons.items():
        if not reason:
            print(f"EGL does not work here, {backend} does: run with  export MUJOCO_GL={backend}", file=sys.stderr)
            return 1
    print(f"MuJoCo cannot render off screen: {reasons}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
