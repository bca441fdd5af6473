"""Chromium without a window, spoken to in its own protocol over a pair of pipes: no driver and no port is needed.

https://chromedevtools.github.io/devtools-protocol; with --remote-debugging-pipe the browser reads messages from file
descriptor 3 and writes answers and events to 4, each a line of JSON that a zero byte ends.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars", "--mute-audio"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe"]
KEYS = {"ArrowUp": 38, "ArrowDown": 40, "ArrowRight": 39, "Home": 36, "End": 35, "Tab": 9, "Enter": 13, " ": 32}
# puts the pipes where the browser looks for them, out of each other's way first, and becomes the browser
LAUNCH = """
import os, sys
moved = [os.dup2(int(pipe), 100 + at) for at, pipe in enumerate(sys.argv[1:3])]
for at, pipe in enumerate(moved):
    os.dup2(pipe, 3 + at)
    os.close(pipe)
os.execv(sys.argv[3], sys.argv[3:])
"""
WAIT = 180  # seconds for an answer of the browser; a busy machine is slow


def executable() -> str:
    """Chromium's path; without one the test is skipped, which the list of allowed skips shows."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium on this machine")
    return found


class Browser:
    """One browser with one page.

    Attributes:
        requests: Addresses that the page asked for, its own included.
        complaints: Console messages of warning or error, exceptions, and what the policy refused.
    """

    def __init__(self, profile: Path) -> None:
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        pipes = (to_browser, from_browser)
        command = [sys.executable, "-c", LAUNCH, *map(str, pipes), executable(), *FLAGS, f"--user-data-dir={profile}"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, pass_fds=pipes, **quiet)
        for pipe in pipes:
            os.close(pipe)
        self._buffer, self._number = b"", 0
        self.requests, self.complaints = list[str](), list[str]()
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.terminate()
        self._process.wait(WAIT)
        os.close(self._read)
        os.close(self._write)

    def open(self, page: Path, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
        """Open a file from disk and wait until it is loaded."""
        self.requests.clear()
        self.complaints.clear()
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        self.send("Emulation.setTouchEmulationEnabled", enabled=width < 600)
        self.scheme(scheme)
        self.send("Page.navigate", url=page.resolve().as_uri())
        self.wait_for("document.readyState === 'complete'")

    def scheme(self, name: str) -> None:
        """What the system says it wants: light or dark; on screen or on paper."""
        features = [{"name": "prefers-color-scheme", "value": name}]
        self.send("Emulation.setEmulatedMedia", media="", features=features)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result; what the page does meanwhile is noted."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if hasattr(self, "_session"):
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._number:
            self._note(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return dict(answer["result"])

    def js(self, expression: str) -> Any:
        """Value of an expression in the page; promises are awaited."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait_for(self, expression: str) -> None:
        """Wait until an expression is true."""
        until = time.monotonic() + WAIT
        while not self.js(expression):
            assert time.monotonic() < until, f"waited {WAIT} s in vain for {expression}"
            time.sleep(0.02)

    def settle(self) -> None:
        """Wait until what was asked for is drawn."""
        self.js("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")

    def click(self, selector: str, x: float = 0.5, y: float = 0.5) -> None:
        """Click an element with the mouse at a share of its width and height."""
        place = self._place(selector, x, y) | {"button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, **place)
        self.settle()

    def wheel(self, selector: str, distance: float) -> None:
        """Turn the wheel over the middle of an element; downwards is positive."""
        place = self._place(selector, 0.5, 0.5)
        self.send("Input.dispatchMouseEvent", type="mouseWheel", deltaX=0, deltaY=distance, **place)
        self.settle()

    def key(self, name: str) -> None:
        """Press a key: one of `KEYS`, or a character."""
        text = {"text": "\r"} if name == "Enter" else {"text": name} if len(name) == 1 else {}
        code = KEYS.get(name, ord(name[0].upper()))
        self.send("Input.dispatchKeyEvent", type="keyDown", key=name, windowsVirtualKeyCode=code, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=name, windowsVirtualKeyCode=code)
        self.settle()

    def type(self, selector: str, text: str) -> None:
        """Write into a field."""
        self.js(f"document.querySelector({selector!r}).focus()")
        self.send("Input.insertText", text=text)
        self.settle()

    def screenshot(self, path: Path) -> Path:
        """The whole page as a PNG."""
        path.parent.mkdir(parents=True, exist_ok=True)
        shot = self.send("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))
        return path

    def _place(self, selector: str, x: float, y: float) -> dict[str, float]:
        found = self.js(
            f"(() => {{ const e = document.querySelector({selector!r});"
            "e.scrollIntoView({block: 'center', behavior: 'instant'});"
            "const b = e.getBoundingClientRect(); return [b.left, b.top, b.width, b.height]; })()"
        )
        return {"x": found[0] + x * found[2], "y": found[1] + y * found[3]}

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._read], [], [], WAIT)
            assert ready, f"no answer from the browser for {WAIT} s"
            part = os.read(self._read, 1 << 20)
            assert part, "the browser has ended"
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\0")
        return dict(json.loads(line))

    def _note(self, event: dict[str, Any]) -> None:
        method, found = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(found["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(found["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and found["type"] in ("error", "warning", "assert"):
            self.complaints.append(str(found["args"]))
        elif method == "Log.entryAdded" and found["entry"]["level"] in ("error", "warning"):
            self.complaints.append(str(found["entry"]))
