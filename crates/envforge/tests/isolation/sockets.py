# Runs in a service of `%FROM%`: everything that its socket answers, asked for other workspaces.
import http.client, socket, stat, uuid
from urllib.parse import quote

AT = '/run/envforge/host.sock'
OWN, OTHERS, IDS = json.loads('''%OWN%'''), json.loads('''%OTHERS%'''), json.loads('''%IDS%''')
DOORS = json.loads('''%DOORS%''')

class Line(http.client.HTTPConnection):
    def __init__(self, at):
        super().__init__('x', timeout=20)
        self.at = at
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.at)

def ask(method, path, body=None, headers=(), at=AT):
    line = Line(at)
    try:
        line.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        text = json.dumps(body).encode() if body is not None else b''
        for name, value in [('host', 'x'), ('content-type', 'application/json'), ('content-length', str(len(text))), *headers]: line.putheader(name, value)
        line.endheaders(text)
        answer = line.getresponse()
        # A socket stays open.
        return answer.status, '' if answer.status == 101 else answer.read().decode(errors='replace')
    # Who is refused for the path alone may be closed before the body was read.
    except (OSError, http.client.HTTPException) as error: return (599, repr(error)) if body is None else ask(method, path, None, headers, at)
    finally: line.close()

UPGRADE = [('connection', 'Upgrade'), ('upgrade', 'websocket'), ('sec-websocket-version', '13'), ('sec-websocket-key', 'dGhlIHNhbXBsZSBub25jZQ==')]
def fresh(kind): return '%s_%s' % (kind, '0' * 26)
BODIES = {'grant': {'rights': ['attach']}, 'wake': {}, 'hold': {'seconds': 60}, 'services': {'verb': 'stop', 'services': ['web']}, 'forks': {'id': fresh('cmd'), 'name': 'stolen'},
          'snapshots': {'id': fresh('cmd')}, 'restore': {'id': fresh('cmd')}, 'runs': {'id': fresh('cmd'), 'target': {'what': 'test'}}, 'links': {'service': 'web'},
          'visits': {'service': 'web'}, 'delete': {'dry_run': False, 'force': True}}
HOST = ['attach', 'exec', 'logs', 'storage', 'ports/web', 'ports/web/connect', 'ports/database', 'ports/cache/connect', 'env?service=web', 'env?service=web&reveal=true',
        'mail', 'mail/latest', 'runs/%s/output' % fresh('cmd')]

found, works = {}, {}
def note(what, detail): found.setdefault(what, []).append(detail)

routes = [(method.upper(), path) for path, item in json.loads(ask('GET', '/v1/openapi.json')[1])['paths'].items() for method in item]
of_one = [route for route in routes if '{slug}' in route[1]]
works['routes'] = len(of_one) > 15

# Grants of one's own are for oneself.
granted = json.loads(ask('POST', '/v1/workspaces/%s/grant' % OWN['slug'], {'rights': ['attach', 'exec', 'logs', 'env', 'reveal', 'mail', 'storage', 'forward', 'run']})[1] or '{}')
token = granted.get('token', '')
forged = [[], [('x-envforge-workspace', IDS[0])], [('authorization', 'Bearer ' + token), ('x-envforge-workspace', IDS[0])],
          [('authorization', 'Bearer ef_guess')], [('x-forwarded-for', '127.0.0.1'), ('forwarded', 'for=127.0.0.1'), ('x-real-ip', '127.0.0.1')]]

def told(text): return [name for name in IDS + ['only of ' + other['slug'] for other in OTHERS] if name in text]

for other in OTHERS:
    slug, id_ = other['slug'], other['id']
    plain = [slug, id_, '%%%02x%s' % (ord(slug[0]), slug[1:])]
    odd = ['./' + slug, '../workspaces/' + slug, OWN['slug'] + '/../' + slug, '%s%%2f..%%2f%s' % (OWN['slug'], slug), '%2e%2e/workspaces/' + slug, slug + '%00',
           slug + '%20', slug.upper(), id_.upper(), '/' + slug, '%s,%s' % (OWN['slug'], slug), '%s/../../workspaces/%s' % (OWN['id'], id_), id_ + ';' + OWN['id']]
    for method, path in of_one:
        body = BODIES.get(path.split('/')[-1] if method != 'DELETE' else 'delete', BODIES['restore'] if 'restore' in path else None) if method != 'GET' else None
        rest = path.replace('{snapshot}', other.get('snapshot') or fresh('snap'))
        for name in plain:
            for headers in forged if name == id_ else forged[:1]:
                status, text = ask(method, rest.replace('{slug}', name), body, headers)
                if status != 404 or told(text.replace(name, '')): note('route', [method, path, name, status])
        # Who is not there and who is not one's own look the same.
        none = ask(method, rest.replace('{slug}', 'nobody-here'), body)
        there = ask(method, rest.replace('{slug}', slug), body)
        if none[1].replace('nobody-here', slug) != there[1]: note('look', [method, path, none, there])
        for name in odd:
            status, text = ask(method, rest.replace('{slug}', name), body)
            if status not in (400, 404) or told(text.replace(name, '')): note('odd', [method, path, name, status, text[:80]])
    for kind in ('command', 'link'):
        if kind not in other: continue
        for method, path in (('GET', '/v1/commands/'), ('POST', '/v1/commands/%s/cancel'), ('DELETE', '/v1/links/')):
            at = path % other[kind] if '%s' in path else path + other[kind]
            if ask(method, at)[0] != 404: note('part', [method, at])
    for what in HOST:
        for name in plain + odd:
            for headers in [forged[0], forged[2]] if name == id_ else [forged[0]]:
                for upgrade in ([], UPGRADE):
                    status, text = ask('GET', '/host/v1/workspaces/%s/%s' % (name, what), None, headers + upgrade)
                    if status < 400 or (name == id_ and status != 404) or told(text.replace(name, '')): note('host', [name, what, status])
    if ask('POST', '/v1/workspaces/open', {'name': slug})[0] != 404: note('open', slug)

for method, path in of_one:
    if method == 'GET': works[path] = ask('GET', path.replace('{slug}', OWN['slug']))[0] == 200
for verb in ('grant', 'hold', 'links', 'visits'): works[verb] = ask('POST', '/v1/workspaces/%s/%s' % (OWN['id'], verb), BODIES[verb])[0] == 200
works['token'] = len(token) > 50
for what in HOST[:5] + HOST[7:11]:
    status, text = ask('GET', '/host/v1/workspaces/%s/%s' % (OWN['id'], what), None, UPGRADE)
    works[what] = status == (101 if what in HOST[:4] or 'connect' in what else 200)
    if 'reveal' in what: works['revealed'] = os.environ['AWS_SECRET_ACCESS_KEY'] in text

# What is listed is oneself; nothing speaks for hosts, gateways or the organization.
for headers in forged:
    listed = json.loads(ask('GET', '/v1/workspaces', None, headers)[1])['workspaces']
    if [one['id'] for one in listed] != [OWN['id']]: note('listed', [headers, [one['id'] for one in listed]])
    if json.loads(ask('GET', '/v1/whoami', None, headers)[1]).get('workspace') != OWN['slug']: note('whoami', headers)
for method, path in routes:
    if not path.startswith(('/v1/host', '/v1/gateway', '/v1/audit', '/v1/keys', '/v1/secrets', '/v1/projects')): continue
    path = path.replace('{name}', 'x').replace('{project}', 'mine')
    tail = path[len('/v1/'):]
    for at in (path, '//v1/' + tail, '/v1//' + tail, '/v1/./' + tail, '/v1/workspaces/../' + tail, '/v1/%2e%2e/v1/' + tail, '/v1/%%%02x%s' % (ord(tail[0]), tail[1:]), path.replace('/v1/', '/v1%2f'),
               '/v1/workspaces/..%2f' + tail, 'http://x' + path, '/host' + path, path.upper(), '/v1/workspaces/%s/../../%s' % (OWN['slug'], tail), path + '/', '/v1/x;/../' + tail):
        for headers in forged[:3]:
            status, text = ask(method, at, None, headers)
            if status not in (400, 404) or told(text): note('spoken for', [method, at, status])
# One request in the body of another.
inner = b'GET /v1/host/sync HTTP/1.1\r\nhost: x\r\nx-envforge-workspace: %s\r\n\r\n' % IDS[0].encode()
for head in (b'content-length: %d\r\ntransfer-encoding: chunked\r\n' % (len(inner) + 5), b'transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n', b'content-length: 0\r\ncontent-length: %d\r\n' % len(inner),
             b'transfer-encoding : chunked\r\n', b'transfer-encoding: xchunked\r\ncontent-length: %d\r\n' % len(inner)):
    line = socket.socket(socket.AF_UNIX)
    line.settimeout(5)
    line.connect(AT)
    heard = b''
    try:
        line.sendall(b'POST /v1/workspaces/%s/hold HTTP/1.1\r\nhost: x\r\nconnection: close\r\n' % OWN['slug'].encode() + head + b'\r\n0\r\n\r\n' + inner)
        while more := line.recv(65536): heard += more
    except OSError: pass
    if told(heard.decode(errors='replace')) or b'"hosts"' in heard: note('smuggled', head.decode())

# The addresses of others by the door for one's own, also with a link to oneself.
link = json.loads(ask('POST', '/v1/workspaces/%s/links' % OWN['slug'], BODIES['links'])[1])['url'].split('/share/')[1]
def visit(host, headers=()):
    line = http.client.HTTPConnection('127.0.0.1', int(OWN['url'].rsplit(':', 1)[1].strip('/')), timeout=20)
    line.putrequest('GET', '/own-page', skip_host=True)
    for name, value in [('host', host), *headers]: line.putheader(name, value)
    line.endheaders()
    answer = line.getresponse()
    return answer.status, answer.read().decode(errors='replace')
open('/tmp/own-page', 'w').write('page of %FROM%')
name = OWN['url'].split('//')[1].strip('/')
works['page'] = visit(name) == (200, 'page of %FROM%')
for other in OTHERS:
    there = other['url'].split('//')[1].strip('/')
    for headers in ([], [('x-envforge-link', token)], [('x-envforge-link', link)], [('x-forwarded-host', name)], [('x-envforge-workspace', other['id'])]):
        for host in (there, there.upper(), there + '.', there.replace(':', '.:')):
            status, text = visit(host, headers)
            if status < 400 or 'page of' in text: note('visited', [host, status])

# Sockets of the machine, and those of others.
def opens(at):
    try: socket.socket(socket.AF_UNIX).connect(at)
    except OSError: return False
    return True
works['own socket'] = opens(AT)
for at in DOORS:
    for path in (at, '/proc/1/root' + at, '/proc/self/root' + at, '/workspace/../..' + at):
        if os.path.lexists(path) or opens(path): note('socket', path)
seen = [os.path.join(at, name) for at, _, names in os.walk('/') if not at.startswith(('/proc', '/sys')) for name in names if stat.S_ISSOCK(os.lstat(os.path.join(at, name)).st_mode)]
if [at for at in seen if at != AT and not at.startswith(('/tmp/', '/run/user/%d/' % os.getuid(), '/workspace/'))]: note('seen', seen)
works['seen'] = AT in seen
mine = socket.socket(socket.AF_UNIX)
mine.bind('\0of-%FROM%')
mine.listen()
works['abstract'] = opens('\0of-%FROM%')
for other in OTHERS:
    if opens('\0held-by-' + other['slug']): note('abstract', other['slug'])
# Nothing can be put into its place.
for act in (lambda: os.unlink(AT), lambda: os.rename(AT, AT + '2'), lambda: os.symlink('/tmp', '/run/envforge/link'), lambda: open('/run/envforge/file', 'w'), lambda: os.chmod('/run/envforge', 0o777)):
    try: note('replaced', repr(act()))
    except OSError: pass
tell({'found': found, 'fails': [what for what, well in works.items() if not well]})
