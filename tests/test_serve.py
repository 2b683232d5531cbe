"""``wmpo serve``: what is answered, what is refused, the ledger of reality beside the dream, and the page itself."""

from __future__ import annotations

import base64
import http.client
import io
import json
import math
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import Message
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import CHROMIUM, Browser
from commands import refused
from finished_run import finished_run
from PIL import Image

from wmpo.envs.ledger import Ledger
from wmpo.envs.metaworld import MetaWorldConfig
from wmpo.envs.simulator import CameraConfig
from wmpo.policy.codec import ActionCodec
from wmpo.rollout.run import run_episodes
from wmpo.serve.guard import Guard
from wmpo.serve.messages import LARGEST, Refused, read_message
from wmpo.serve.run import RunServer
from wmpo.serve.session import steer
from wmpo.stages import models
from wmpo.stages.guards import imagined_starts
from wmpo.stages.rounds import imagined_env

JSON = {"Content-Type": "application/json"}
KEYS = {"driver": "keys", "temperature": 1.0, "move": [1, 0, 0], "gripper": -1, "world": "imagined"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunServer]:
    """A run that nothing solves in imagination, so that episodes last."""
    folder = tmp_path_factory.mktemp("runs") / "served"
    finished_run(folder, threshold=1e9)
    with served(folder) as running:
        yield running


@contextmanager
def served(folder: Path) -> Iterator[RunServer]:
    (folder.parent / "secret.json").write_text("{}")
    (folder / "way-out.json").symlink_to(folder.parent / "secret.json")
    (folder / "report.html").write_text("<script>steal()</script>")
    with RunServer(folder, "127.0.0.1", 0) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()


class Answer:
    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def refuses(self, status: int, words: str = "") -> None:
        """One sentence, no traceback."""
        sentence = self.json["error"]
        assert self.status == status and words in sentence and "\n" not in sentence and len(sentence) < 400, self.json


def ask(server: RunServer, path: str, body: Any = None, **headers: str) -> Answer:
    """GET, or POST where there is a body: bytes as they are, anything else as JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=150)
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if body is None:
        connection.request("GET", path, headers=sent)
    else:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", path, content, JSON | sent)
    found = connection.getresponse()
    answer = Answer(found.status, found.headers, found.read())
    connection.close()
    return answer


def begin(server: RunServer, episode: int = 0, draw: int = 7) -> str:
    return ask(server, "/api/begin", {"episode": episode, "draw": draw}).json["session"]


def step(server: RunServer, session: str, **changed: Any) -> Answer:
    return ask(server, "/api/step", {"session": session, **KEYS, **changed})


def frames(film: dict[str, Any]) -> np.ndarray:
    """[L, h, w, 3] from a film's picture."""
    content = base64.b64decode(film["picture"].removeprefix("data:image/png;base64,"))
    pixels = np.asarray(Image.open(io.BytesIO(content)))
    return pixels.reshape(film["num_frames"], -1, *pixels.shape[1:])


def test_the_page_and_what_it_loads(server: RunServer) -> None:
    page = ask(server, "/")
    assert page.status == 200 and "text/html" in page.headers["Content-Type"]
    assert "script-src 'self'" in page.headers["Content-Security-Policy"]
    assert page.headers["Access-Control-Allow-Origin"] is None
    for name in ("page.css", "draw.js", "play.js", "watch.js"):
        assert ask(server, f"/{name}").status == 200, name
    assert "http" not in page.body.decode(), "nothing is loaded from elsewhere"


def test_the_run_is_told(server: RunServer) -> None:
    about = ask(server, "/api/about", {}).json
    assert (about["round"], about["name"], about["threshold"]) == (2, "served", 1e9)
    first, second = about["episodes"][0], about["episodes"][3]
    assert (first["round"], first["solved"], first["steps"]) == (1, False, 8)
    assert (second["round"], second["policy"]) == (2, "base")
    live = ask(server, "/api/live?").json
    assert {"learning", "time", "episodes"} <= {section["anchor"] for section in live["sections"]}
    assert "stages" in live["hero"]
    assert ask(server, f"/api/live?{live['stamp']}").json["sections"] == []


def test_the_sections_follow_the_folder(server: RunServer) -> None:
    stamp = ask(server, "/api/live?").json["stamp"]
    row = {"purpose": "<i>", "policy": "base", "success": True, "steps": 4}
    server.studio.job.root.ledger.write_text(json.dumps(row) + "\n")
    server.live._rest = 0.0
    view = ask(server, f"/api/live?{stamp}").json
    ledger = next(section["body"] for section in view["sections"] if section["anchor"] == "episodes")
    assert view["stamp"] != stamp and "&lt;i&gt;" in ledger
    server.studio.job.root.ledger.unlink()


def test_replays_are_those_of_the_world_model(server: RunServer) -> None:
    shown = ask(server, "/api/replay", {"episode": 4}).json
    real, imagined = frames(shown["real"]), frames(shown["imagined"])
    assert real.shape == imagined.shape and np.array_equal(real[0], imagined[0])
    assert not np.array_equal(real[-1], imagined[-1])
    stride = server.studio.job.experiment.world_model.frame_stride
    assert shown["solved_frame"] == math.ceil(8 / stride) and shown["called_imagined"] == 0
    assert shown["real"]["logits"][0] is None and None not in shown["real"]["logits"][1:]
    chunks = 8 // server.studio.job.experiment.policy.chunk_size
    assert len(shown["apart"]) == len(shown["doubt"]) == chunks and min(shown["apart"]) > 0
    ask(server, "/api/replay", {"episode": 6}).refuses(404, "no collected episode 6")


def test_siblings_have_advantages_of_their_group(server: RunServer) -> None:
    job = server.studio.job
    asked = {"episode": 1, "policy": "base", "temperature": 1.0, "draw": 3}
    plain = ask(server, "/api/siblings", asked).json["siblings"]
    assert [s["advantage"] for s in plain] == [0.0] * job.experiment.improve.groups.group_size
    scores = sorted(max(s["film"]["logits"][1:]) for s in plain)
    reward = models.load_reward(job.folder_of(2))
    reward.threshold = (scores[0] + scores[-1]) / 2  # some of them exceed it
    models.save_reward(job.folder_of(2), reward)
    try:
        group = ask(server, "/api/siblings", asked).json["siblings"]
    finally:
        reward.threshold = 1e9
        models.save_reward(job.folder_of(2), reward)
    wins, advantages = np.array([s["solved"] for s in group]), np.array([s["advantage"] for s in group])
    assert 0 < wins.sum() < len(wins) and (advantages[wins] > 0).all() and (advantages[~wins] < 0).all()
    assert abs(advantages.sum()) < 0.01


def test_a_policy_that_drives_plays_the_episode_that_it_would_play_alone(server: RunServer, float32: None) -> None:
    job = server.studio.job
    start = imagined_starts(job.collected()[0] + job.collected()[1])
    which = start.sim_seed.tolist().index(20_000_011)
    alone = run_episodes(
        imagined_env(job, 2), models.load_policy(job.root, "base"),
        start.rows(torch.tensor([which])).with_ids(torch.tensor([99]), torch.tensor([99])),
        temperature=1.0, seed=job.seed, record_video=True,
    )  # fmt: skip
    session, shown, seen = begin(server, 1, draw=99), [], {"playing": True}
    while seen["playing"]:
        seen = step(server, session, driver="base").json
        shown.append(frames(seen["dream"]))
    assert alone.video is not None
    assert np.array_equal(np.concatenate(shown), alone.video[0, 1:].numpy())
    assert (seen["dream_state"], seen["dream_steps"]) == ("time is up", int(alone.num_steps))
    assert seen["doubt"] > 0 and seen["real"] is None
    step(server, session).refuses(409, "ended")


def test_keys_move_as_the_camera_sees_it() -> None:
    codec = ActionCodec((-1.0, -1.0, -0.5, -1.0), (1.0, 1.0, 0.5, 1.0), 4, 11)
    turned = MetaWorldConfig(camera=CameraConfig(azimuth=90))
    right, away, up = (steer(move, 1, turned, codec)[0, 0].tolist() for move in np.eye(3).tolist())
    assert np.allclose(right, [1, 0, 0, 1], atol=1e-6), "a camera that looks along y has x to its right"
    assert np.allclose(away, [0, 1, 0, 1], atol=1e-6)
    assert np.allclose(up, [0, 0, 0.5, 1]), "within what demonstrations did"


def test_reality_beside_the_dream_is_counted(server: RunServer) -> None:
    ledger = Ledger(server.studio.job.root.ledger)
    session, size = begin(server, draw=5), server.studio.job.experiment.policy.chunk_size
    first = step(server, session, move=[0, 1, 1]).json
    assert first["real"] is None and not ledger.episodes(), "no reality, no episode"
    both = step(server, session, world="both").json
    assert both["problem"] == "" and both["real_state"] == "playing" and both["apart"] > 0
    assert len(frames(both["real"])) == 1 + 2 * len(frames(both["dream"])), "it shows its start and has caught up"
    assert step(server, session).json["real"] is None  # switched off again
    later = step(server, session, driver="base", world="real").json
    assert both["real_steps"] == 2 * size and later["real_steps"] == 4 * size
    other = begin(server, draw=6)
    ask(server, "/api/real", {"session": other})
    step(server, other, world="both")
    rows = ledger.episodes()
    assert [row["purpose"] for row in rows] == ["served"], "the other session ended it"
    assert (rows[0]["policy"], rows[0]["steps"], rows[0]["success"]) == ("base, keys", 4 * size, False)
    for _ in range(server.studio.job.experiment.max_chunks - 1):
        end = step(server, other, world="both").json
    assert end["real_state"] == "time is up" and not end["playing"]
    assert ledger.count() == {"served": 2}, "played to its end: counted once"
    for _ in range(2):
        step(server, begin(server, draw=6), world="both")
    ask(server, "/api/real", {"session": begin(server)})
    assert ledger.count() == {"served": 4}, "the same once more is another episode"


def test_only_a_few_dreams_are_kept(server: RunServer) -> None:
    first = begin(server)
    others = [begin(server) for _ in range(4)]
    step(server, first).refuses(404, "ended")
    assert step(server, others[0]).status == 200


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/api/step", b"{", 400, "no JSON"),
        ("/api/step", b"\xff\xfe", 400, "no JSON"),
        ("/api/step", b"[" * 9000, 400, "no JSON"),
        ("/api/step", b'{"session": NaN}', 400, "no JSON"),
        ("/api/step", b"1" * 9000, 400, ""),
        ("/api/step", [1], 400, "JSON object"),
        ("/api/step", {"sesion": "x"}, 400, 'no field "sesion"'),
        ("/api/step", {}, 400, "driver is missing"),
        ("/api/step", {"session": "x", **KEYS, "move": [0, 0]}, 400, "3 numbers"),
        ("/api/step", {"session": "x", **KEYS, "move": [0, 0, True]}, 400, "move must be a number"),
        ("/api/step", {"session": "x", **KEYS, "gripper": 2}, 400, "-1..1"),
        ("/api/step", {"session": "x", **KEYS, "driver": ["base"]}, 400, "keys, base, improved"),
        ("/api/step", {"session": 3, **KEYS}, 400, "short text"),
        ("/api/step", {"session": "x", **KEYS}, 404, "has ended"),
        ("/api/step", b'{"session": "x", "driver": "keys", "temperature": 1e999}', 400, "temperature"),
        ("/api/real", {"session": "../.."}, 404, "has ended"),
        ("/api/begin", {"episode": 1.0, "draw": 0}, 400, "integer"),
        ("/api/begin", {"episode": True, "draw": 0}, 400, "integer"),
        ("/api/begin", {"episode": -1, "draw": 0}, 400, "0.."),
        ("/api/begin", {"episode": 10**30, "draw": 0}, 400, "0.."),
        ("/api/begin", {"episode": 999, "draw": 0}, 404, "999"),
        ("/api/nothing", {}, 404, ""),
        ("/run/config.json", {}, 404, ""),
        ("/api/about", b" " * (LARGEST + 1), 413, "at most"),
    ],
)
def test_malformed_messages_get_one_sentence(server: RunServer, path: str, body: Any, status: int, words: str) -> None:
    ask(server, path, body).refuses(status, words)
    assert ask(server, "/api/about", {}).status == 200, "the server goes on"


def test_what_is_no_message_is_refused(server: RunServer) -> None:
    ask(server, "/api/about", {}, Content_Type="text/plain").refuses(415)
    ask(server, "/api/about", {}, Content_Type="multipart/form-data").refuses(415)
    for length in ("-1", "x", "9" * 30):
        ask(server, "/api/about", b"", Content_Length=length).refuses(411)
    for sent in (
        b"\x00\x01\r\n\r\n",
        b"GET\r\n\r\n",
        b"OPTIONS / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", server.server_port), timeout=20) as raw:
            raw.sendall(sent)
            raw.shutdown(socket.SHUT_WR)
            assert b"Traceback" not in raw.makefile("rb").read()
    assert ask(server, "/").status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example"},
        {"Host": "192.168.0.7"},
        {"Host": "[::1"},
        {"Host": ""},
    ],
)
def test_other_sites_and_rebound_names_are_refused(server: RunServer, headers: dict[str, str]) -> None:
    for path, body in (("/", None), ("/api/live", None), ("/run/config.json", None), ("/api/about", {})):
        ask(server, path, body, **headers).refuses(403)


def test_its_own_pages_may_ask_under_any_loopback_name(server: RunServer) -> None:
    for host in (f"127.0.0.1:{server.server_port}", "localhost:9000", "[::1]:80"):
        own = {"Host": host, "Origin": f"http://{host}", "Sec_Fetch_Site": "same-origin"}
        assert ask(server, "/api/about", {}, **own).status == 200


def test_other_machines_only_where_that_was_asked_for(tmp_path: Path) -> None:
    def asked(host: str) -> Message:
        headers = Message()
        headers["Host"] = host
        return headers

    with pytest.raises(Refused, match="own machine"):
        Guard("127.0.0.1").check("192.168.0.9", asked("127.0.0.1"))
    for name in ("192.168.0.7:8000", "robot", "localhost"):
        Guard("robot").check("192.168.0.9", asked(name))
    with pytest.raises(Refused, match="under its address"):
        Guard("0.0.0.0").check("192.168.0.9", asked("rebound.example"))


@pytest.mark.parametrize(
    "path",
    [
        "../secret.json", "%2e%2e/secret.json", "..%2fsecret.json", "/etc/hostname", "%2fetc/passwd", "way-out.json",
        "models/base.safetensors", "data", "", "nothing.json", "a%00.json", "..%5csecret.json", "%ff.json",
        "x" * 5000 + ".json",
    ],
)  # fmt: skip
def test_nothing_outside_of_the_run_is_served(server: RunServer, path: str) -> None:
    ask(server, f"/run/{path}").refuses(404)


def test_files_of_the_run_are_served_without_power(server: RunServer) -> None:
    assert ask(server, "/run/config.json").json["recipe"] == "tiny"
    report = ask(server, "/run/report.html")
    assert report.headers["Content-Security-Policy"].startswith("sandbox allow-scripts;"), "of another origin"


def test_an_unfinished_run_has_curves_but_no_dream(tmp_path: Path) -> None:
    finished_run(tmp_path / "new", rounds=0)
    with RunServer(tmp_path / "new", "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert ask(server, "/api/about", {}).json["round"] == 0
        assert "not finished" in ask(server, "/api/live?").json["hero"]
        for path, body in (("/api/begin", {"episode": 0, "draw": 0}), ("/api/replay", {"episode": 0})):
            ask(server, path, body).refuses(409, "no complete round")
        (tmp_path / "new/results.json").write_text("{")
        server.live._rest = 0.0
        ask(server, "/api/live?").refuses(409, "damaged")
        server.shutdown()


def test_no_run_and_no_port_are_one_sentence(tmp_path: Path, server: RunServer) -> None:
    assert "config.json" in refused("serve", "nowhere", cwd=tmp_path)
    assert "another --port" in refused("serve", server.path, "--port", str(server.server_port), cwd=tmp_path)
    assert "another --host" in refused("serve", server.path, "--host", "no.such.invalid", cwd=tmp_path)
    assert "--port" in refused("serve", server.path, "--port", "70000", cwd=tmp_path)


def test_numbers_that_json_does_not_have() -> None:
    for text in (b'{"a": NaN}', b'{"a": -Infinity}', b"", b"null"):
        with pytest.raises(Refused):
            read_message(text, ("a",))
    with pytest.raises(Refused, match="a must be a number"):
        read_message(b'{"a": 1e999}', ("a",)).number("a", 0, math.inf)


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium")
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_in_a_browser(server: RunServer, tmp_path: Path, width: int) -> None:
    browser = Browser(tmp_path / "profile")
    try:
        browser.resize(width)
        browser.open(f"http://127.0.0.1:{server.server_port}/")
        browser.until("document.querySelector('#play-logits svg') && document.querySelector('#replay-logits svg')")
        assert browser.run("document.title").startswith("served")
        browser.until("!document.querySelector('#play .main').disabled")
        browser.click("#play .pad [data-key=w]")
        browser.until("document.querySelector('#play figcaption span').textContent.includes('4 steps')")
        browser.run("document.querySelector('#play .stage').focus()")
        browser.press("ArrowLeft")
        browser.until("document.querySelector('#play figcaption span').textContent.includes('8 steps')")
        browser.click("#play input[value=both] + span")
        browser.until("document.querySelectorAll('#play figcaption span')[1].textContent.includes('8 steps')")
        browser.click("#play input[value=improved] + span")
        browser.until("document.querySelector('#play figcaption span').textContent.includes('time is up')")
        browser.click("#siblings .main")
        browser.until("document.querySelectorAll('#siblings figure').length == 4")
        assert "A 0.00" in browser.run("document.querySelector('#siblings .group').textContent")
        assert browser.run("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out"
        browser.picture(tmp_path / f"page-{width}.png")
        assert np.asarray(Image.open(tmp_path / f"page-{width}.png")).std() > 10
        assert not browser.errors
    finally:
        browser.close()


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium")
def test_eight_siblings_of_which_some_solve_it_in_a_browser(tmp_path: Path) -> None:
    """Each film has its advantage, and its classifier's line beside the threshold."""
    job = finished_run(tmp_path / "served", threshold=1e9, group_size=8)
    browser, draw = Browser(tmp_path / "profile"), 12345
    try:
        with served(job.root.path) as server:
            asked = {"episode": 1, "policy": "base", "temperature": 1.0, "draw": draw}
            scores = [max(s["film"]["logits"][1:]) for s in ask(server, "/api/siblings", asked).json["siblings"]]
            reward = models.load_reward(job.folder_of(2))
            reward.threshold = (sorted(scores)[4] + sorted(scores)[5]) / 2
            models.save_reward(job.folder_of(2), reward)
            group = ask(server, "/api/siblings", asked).json["siblings"]
            browser.resize(1280)
            browser.open(f"http://127.0.0.1:{server.server_port}/")
            browser.until("document.querySelector('#replay-logits svg')")
            browser.run(f"Math.random = () => {(draw + 0.5) / 2**31}")
            for name, value in (("episode", 1), ("policy", "base"), ("temperature", 1)):
                browser.run(f"document.querySelector('#siblings form').elements.{name}.value = '{value}'")
            browser.click("#siblings .main")
            browser.until("document.querySelectorAll('#siblings figure').length == 8")
            told = browser.run("[...document.querySelectorAll('#siblings figcaption')].map(each => each.textContent)")
            for sibling, words in zip(group, told, strict=True):
                assert words.startswith("solved" if sibling["solved"] else "not solved")
                assert words.endswith(f"A {sibling['advantage']:+.2f}".replace("-", "\u2212")), words
            assert 0 < sum(sibling["solved"] for sibling in group) < 8
            drawn = ", ".join(
                f"each.querySelectorAll('{part}').length" for part in ("polyline", "line[stroke-dasharray]")
            )
            lines = f"[...document.querySelectorAll('#siblings .trace svg')].map(each => [{drawn}])"
            assert browser.run(lines) == [[1, 1]] * 8
            browser.picture(tmp_path / "siblings.png")
            assert not browser.errors
    finally:
        browser.close()
