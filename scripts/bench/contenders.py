"""The gateways of gateway.py: how each is started, which processes it is, and what must be installed for it."""

import contextlib
import getpass
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import time

MODEL = "fake"
# Seconds in which a program must say where it is, and in which it must have ended.
START, STOP = 60, 10
NGINX = """daemon off;
{user}
worker_processes {cores};
pid nginx.pid;
error_log stderr error;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  client_body_buffer_size 1m; client_max_body_size 64m;
  tcp_nodelay on; keepalive_requests 100000000; keepalive_timeout 600s;
  upstream workers {{ {servers} keepalive 512; keepalive_requests 100000000; keepalive_timeout 600s; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://workers;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_read_timeout 600s;
    }}
  }}
}}
"""


class Missing(RuntimeError):
    """A contender that is not installed."""


class Programs:
    """Programs in the background; leaving the `with` block ends every one of them, by its own number."""

    def __init__(self, scratch, muster):
        self.scratch, self.muster, self.running = pathlib.Path(scratch), str(muster), []
        self.workers = {}  # the addresses of two fake workers, by transport
        foreign = ("MUSTER_", "FASTCHAT_", "OPENAI_")
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        # An empty LOGDIR keeps FastChat's log files away; nothing here may go through a proxy.
        self.env |= {"LOGDIR": "", "PYTHONUNBUFFERED": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # A second signal must not cut this short.
        old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        for program in self.running:
            if program.poll() is None:
                program.terminate()
        for program in self.running:
            try:
                program.wait(STOP)
            except subprocess.TimeoutExpired:
                program.kill()
                program.wait()
        signal.pthread_sigmask(signal.SIG_SETMASK, old)

    def start(self, name, *command):
        log = self.scratch / f"{len(self.running):02}-{name}.log"
        with log.open("w") as file:
            program = subprocess.Popen([str(word) for word in command], cwd=self.scratch, env=self.env,
                                       stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        self.running.append(program)
        return program, log

    def muster_service(self, name, *command):
        """Starts one of muster's services on a free port; gives its address and its process."""
        program, log = self.start(name, self.muster, *command, "--log", "warn", "--port", "0")
        return wait(name, program, log, lambda: re.search(r"http://127\.0\.0\.1:\d+", log.read_text())).group(), program

    def controller(self, name):
        return self.muster_service(name, "controller")

    def pair(self, transport, controller=None):
        """Two fake workers of a transport, the same for everybody who asks."""
        if transport not in self.workers:
            known = ["--controller-address", controller] if controller else []
            words = ["bench", "fake-worker", "--transport", transport, "--model", MODEL, *known]
            self.workers[transport] = [self.muster_service(f"{transport}-worker-{which}", *words)[0] for which in "ab"]
        return self.workers[transport]


def wait(name, program, log, ready):
    """Asks until there is an answer; what is raised meanwhile counts as not yet."""
    end = time.monotonic() + START
    while time.monotonic() < end and program.poll() is None:
        with contextlib.suppress(OSError):
            if answer := ready():
                return answer
        time.sleep(0.05)
    state = "is not ready" if program.poll() is None else f"has ended with status {program.returncode}"
    raise RuntimeError(f"{name} {state}; the end of its log: {log.read_text()[-500:]}")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def listens(port):
    with socket.create_connection(("127.0.0.1", port), timeout=1):
        return True


# Each of these starts a contender; it gives the address that is asked and the numbers of the processes that count.


def direct(programs, _):
    return programs.pair("openai")[0], []


def nginx(programs, _):
    port, folder = free_port(), programs.scratch / "nginx"
    folder.mkdir()
    servers = " ".join(f"server {url.removeprefix('http://')};" for url in programs.pair("openai"))
    user = f"user {getpass.getuser()};" if os.getuid() == 0 else ""
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(user=user, cores=os.cpu_count(), servers=servers, port=port))
    program, log = programs.start("nginx", tool_nginx(None), "-e", "stderr", "-p", folder, "-c", config)
    wait("nginx", program, log, lambda: listens(port))
    return f"http://127.0.0.1:{port}", [program.pid]


def vllm_router(programs, work):
    port, metrics = free_port(), free_port()
    program, log = programs.start(
        "vllm-router", tool_router(work), "--host", "127.0.0.1", "--port", port,
        "--worker-urls", *programs.pair("openai"), "--policy", "round_robin",
        "--prometheus-host", "127.0.0.1", "--prometheus-port", metrics, "--log-level", "warning",
    )
    wait("vllm-router", program, log, lambda: listens(port))
    return f"http://127.0.0.1:{port}", [program.pid]


def fastchat(programs, work):
    python = tool_fastchat(work)
    controller, processes = free_port(), []
    for module, port, more in [
        ("controller", controller, []),
        ("openai_api_server", free_port(), ["--controller-address", f"http://127.0.0.1:{controller}"]),
    ]:
        program, log = programs.start(f"fastchat-{module}", python, "-m", f"fastchat.serve.{module}",
                                      "--host", "127.0.0.1", "--port", port, *more)
        wait(f"FastChat's {module}", program, log, lambda: listens(port))
        processes.append(program.pid)
    programs.pair("fastchat", f"http://127.0.0.1:{controller}")
    return f"http://127.0.0.1:{port}", processes


def muster_openai(programs, _):
    return muster(programs, "openai")


def muster_http(programs, _):
    return muster(programs, "http")


def muster(programs, transport):
    address, controller = programs.controllers[transport]
    programs.pair(transport, address)
    url, gateway = programs.muster_service(f"muster-{transport}-gateway", "gateway", "--controller-address", address)
    return url, [controller.pid, gateway.pid]


CONTENDERS = {
    "direct": direct,
    "nginx": nginx,
    "vllm-router": vllm_router,
    "fastchat": fastchat,
    "muster-openai": muster_openai,
    "muster-http": muster_http,
}


def start(names, programs, work):
    """Starts contenders in turn; yields each name with its address and processes, or with why it takes no part."""
    # The workers of the others are muster's too, so its controllers come before all of them.
    programs.controllers = {transport: programs.controller(f"muster-{transport}-controller")
                            for transport in ("openai", "http") if f"muster-{transport}" in names}
    if "openai" in programs.controllers:
        programs.pair("openai", programs.controllers["openai"][0])
    for name in names:
        try:
            yield name, CONTENDERS[name](programs, work), None
        except (Missing, RuntimeError) as error:
            yield name, None, str(error)


def tool_nginx(_):
    path = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
    return path or missing("nginx is not installed: apt-get install nginx-light")


def tool_router(work):
    return existing(work / "venv-router/bin/vllm-router")


def tool_fastchat(work):
    return existing(work / "venv-fastchat/bin/python")


def existing(path):
    return path if path.exists() else missing(f"{path} is missing: run scripts/bench/setup-gateway.sh {path.parents[2]}")


def missing(reason):
    raise Missing(reason)


def version(name, programs, work):
    """The version of a contender that runs."""
    package = "import importlib.metadata as m; print(m.version('{}'))"
    command = {
        "nginx": lambda: [tool_nginx(None), "-v"],
        "vllm-router": lambda: [work / "venv-router/bin/python", "-c", package.format("vllm-router")],
        "fastchat": lambda: [tool_fastchat(work), "-c", package.format("fschat")],
    }.get(name, lambda: [programs.muster, "--version"])()
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=60)
    return (done.stdout or done.stderr).strip().split()[-1].removeprefix("nginx/")


# What the system says of a process with everything it has started.


def tree(pid):
    parents = {}
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                parents.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [pid]
    while waiting:
        found.append(waiting.pop())
        waiting += parents.get(found[-1], [])
    return found


def resident(pids):
    """Memory of process trees that lies in main memory, in MiB; what processes share counts for each."""
    kibibytes = 0
    for pid in {process for root in pids for process in tree(root)}:
        with contextlib.suppress(OSError, AttributeError):
            status = pathlib.Path(f"/proc/{pid}/status").read_text()
            kibibytes += int(re.search(r"VmRSS:\s+(\d+)", status).group(1))
    return kibibytes / 1024
