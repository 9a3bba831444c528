"""In the lab's machine: runs the commands that `cargo xtask lab` sends, one TCP connection each.

The connection comes through QEMU's forward of a loopback port, and opens with the token line.
Request: a JSON line {"command": [...], "directory": "...", "environment": {...}}.
Frames, both ways: 1 byte kind, 4 bytes big-endian length, data.
  to here:   0 standard input (length 0: its end)
  from here: 3 accepted, 1 standard output, 2 standard error, 0 exit status in decimal (the last frame)
When nobody has been connected for `idle` seconds, the machine ends.
"""
import json, os, select, signal, socket, struct, subprocess, threading, time

def read(name):
    with open("/run/lab/" + name) as f:
        return f.read().strip()

TOKEN = read("token")
IDLE_S = int(read("idle"))
lock = threading.Lock()
active = 0
last = time.monotonic()

def frame(kind, data):
    return struct.pack(">BI", kind, len(data)) + data

def feed(stream, process):
    """Standard input until its end; the end of the connection is the end of the command."""
    try:
        while True:
            head = stream.read(5)
            if len(head) < 5:
                break
            kind, length = struct.unpack(">BI", head)
            data = stream.read(length)
            if process.stdin.closed:
                continue
            try:
                if length:
                    process.stdin.write(data)
                    process.stdin.flush()
                else:
                    process.stdin.close()
            except OSError:
                pass
    except OSError:
        pass
    if process.poll() is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except OSError:
            pass

def run(connection, stream, request):
    environment = dict(os.environ, **request.get("environment", {}))
    try:
        process = subprocess.Popen(
            request["command"], cwd=request.get("directory"), env=environment, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except OSError as error:
        connection.sendall(frame(2, f"lab: {error}\n".encode()) + frame(0, b"127"))
        return
    threading.Thread(target=feed, args=(stream, process), daemon=True).start()
    kinds = {process.stdout.fileno(): 1, process.stderr.fileno(): 2}
    poll = select.poll()
    for fd in kinds:
        poll.register(fd, select.POLLIN | select.POLLHUP)
    while kinds:
        # A daemon that keeps the pipes open must not hold the caller: stop when the command has ended.
        events = poll.poll(200)
        if not events and process.poll() is not None:
            break
        for fd, _ in events:
            data = os.read(fd, 65536)
            if data:
                connection.sendall(frame(kinds[fd], data))
            else:
                poll.unregister(fd)
                del kinds[fd]
    status = process.wait()
    connection.sendall(frame(0, str(status if status >= 0 else 128 - status).encode()))

def serve(connection):
    global active, last
    try:
        stream = connection.makefile("rb")
        if stream.readline(200).decode(errors="replace").strip() == TOKEN:
            connection.sendall(frame(3, b""))
            run(connection, stream, json.loads(stream.readline()))
    except (OSError, ValueError):
        pass
    finally:
        try:
            connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        connection.close()
        with lock:
            active -= 1
            last = time.monotonic()

listener = socket.create_server(("0.0.0.0", 7000), backlog=64)
listener.settimeout(1)
print("nacre lab: ready", flush=True)
while True:
    try:
        connection, _ = listener.accept()
        connection.settimeout(None)
    except TimeoutError:
        with lock:
            if active == 0 and time.monotonic() - last > IDLE_S:
                os._exit(0)
        continue
    with lock:
        active += 1
    threading.Thread(target=serve, args=(connection,), daemon=True).start()
