# Runs in a service of `%FROM%` with its keys, against the bucket of `%WHOSE%`. It signs by hand: a client would not send
# what is sent here, and a server may verify another path than the one that was sent.
import base64, datetime, hashlib, hmac, http.client, posixpath, re
from urllib.parse import quote, unquote, urlsplit

T, O, K = '%BUCKET%', bucket, 'own'
MINE = 'tried-by-%FROM%'
SECRET = b'only of %WHOSE%'
MARKS = [SECRET, hashlib.md5(SECRET).hexdigest().encode()]
OWN = [b'only of %FROM%', hashlib.md5(b'only of %FROM%').hexdigest().encode()]
KEY, HIDDEN = os.environ['AWS_ACCESS_KEY_ID'], os.environ['AWS_SECRET_ACCESS_KEY']
BARE = '-_.~'
# Every form of each, or those that differ most.
ALL = '%ALL%' == 'yes'

def signed(text, day, service='s3'):
    key = ('AWS4' + HIDDEN).encode()
    for part in (day, 'us-east-1', service, 'aws4_request', text):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return key.hex()

def now(): return datetime.datetime.now(datetime.timezone.utc).strftime('%Y%m%dT%H%M%SZ')

def words(query): return '&'.join(sorted('%s=%s' % (quote(k, safe=BARE), quote(v, safe=BARE)) for k, v in query))

def to_sign(method, path, query, headers, digest, time, scope):
    head = ''.join('%s:%s\n' % (name, headers[name]) for name in sorted(headers))
    text = '\n'.join([method, path, query, head, ';'.join(sorted(headers)), digest])
    return '\n'.join(['AWS4-HMAC-SHA256', time, scope, hashlib.sha256(text.encode()).hexdigest()])

lines = {}
def ask(method, target, headers, body=b'', at=('localhost', 9000)):
    fresh = at not in lines
    line = lines.setdefault(at, http.client.HTTPConnection(*at, timeout=20))
    try:
        line.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items(): line.putheader(name, value)
        line.putheader('content-length', str(len(body)))
        line.endheaders(body)
        answer = line.getresponse()
        return answer.status, str(answer.msg).encode() + answer.read()
    except (OSError, http.client.HTTPException) as error:
        line.close()
        del lines[at]
        # One that was left open may have been closed meanwhile.
        return (599, repr(error).encode()) if fresh else ask(method, target, headers, body, at)

def send(method, path, query=(), body=b'', canonical=None, host='localhost:9000', service='s3', **more):
    time, digest = now(), hashlib.sha256(body).hexdigest()
    headers = {'host': host, 'x-amz-date': time, 'x-amz-content-sha256': digest}
    headers.update({name.replace('_', '-'): value for name, value in more.items()})
    scope = '%s/us-east-1/%s/aws4_request' % (time[:8], service)
    text = to_sign(method, canonical or path, words(query), headers, digest, time, scope)
    headers['authorization'] = 'AWS4-HMAC-SHA256 Credential=%s/%s, SignedHeaders=%s, Signature=%s' % (
        KEY, scope, ';'.join(sorted(headers)), signed(text, time[:8], service))
    return ask(method, path + ('?' + words(query) if query else ''), headers, body)

def ways(path):
    """What a server may take for the path that was signed: as it is, as it would write it, as it would shorten it."""
    plain = unquote(path, errors='replace')
    return dict.fromkeys([path, quote(plain, safe='/' + BARE), quote(posixpath.normpath(plain), safe='/' + BARE)])

def every(method, path, **more): return [send(method, path, canonical=way, **more) for way in ways(path)]

def presigned(method, path, canonical, base):
    time = now()
    scope = time[:8] + '/us-east-1/s3/aws4_request'
    query = [('X-Amz-Algorithm', 'AWS4-HMAC-SHA256'), ('X-Amz-Credential', KEY + '/' + scope), ('X-Amz-Date', time),
             ('X-Amz-Expires', '300'), ('X-Amz-SignedHeaders', 'host')]
    host = urlsplit(base).netloc
    text = to_sign(method, canonical, words(query), {'host': host}, 'UNSIGNED-PAYLOAD', time, scope)
    target = path + '?' + words(query) + '&X-Amz-Signature=' + signed(text, time[:8])
    return ask(method, target, {'host': host}, at=(urlsplit(base).hostname, urlsplit(base).port))

def has(marks, *answers): return any(mark in text for _, text in answers for mark in marks)

def form(key, of, at):
    """A browser's form."""
    time = now()
    scope = time[:8] + '/us-east-1/s3/aws4_request'
    end = (datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1)).strftime('%Y-%m-%dT%H:%M:%S.000Z')
    fields = {'x-amz-credential': KEY + '/' + scope, 'x-amz-algorithm': 'AWS4-HMAC-SHA256', 'x-amz-date': time}
    rules = [{'bucket': of}, ['starts-with', '$key', '']] + [{name: value} for name, value in fields.items()]
    policy = base64.b64encode(json.dumps({'expiration': end, 'conditions': rules}).encode()).decode()
    fields.update({'key': key, 'bucket': of, 'policy': policy, 'x-amz-signature': signed(policy, time[:8])})
    parts = ['--x\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % pair for pair in fields.items()]
    parts.append('--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\ntried\r\n--x--\r\n')
    return ask('POST', at, {'host': 'localhost:9000', 'content-type': 'multipart/form-data; boundary=x'}, ''.join(parts).encode())

def paths(key, all_=ALL):
    """Everything that may be read as `T/key`, most of it by way of one's own bucket."""
    up = ['..', '%2e%2e', '%252e%252e'] + ['.%2e', '%2E.', '..%00', '..;', '%c0%ae%c0%ae', '..%20', '...'] * all_
    cut = ['/', '%2f', '//'] + ['%252f', '%5c', '/./', '%2F%2F'] * all_
    for dots in up:
        for slash in cut: yield slash.join(['/' + O, dots, T, key])
    for slash in cut:
        yield slash.join(['/' + T, key])
        yield slash.join(['/' + O, 'x', '..', '..', T, key])
        yield slash.join(['/' + O, 'x', '%2e%2e', '%2e%2e', T, key])
        yield slash.join(['/' + O, '', T, key])
        yield slash.join(['/' + O, '..', '..', 'buckets', T, key])
        yield slash.join(['/buckets', T, key])
        yield slash.join(['/' + O, '.uploads', '..', '..', T, key])
    yield from ('//%s/%s' % (T, key), '/./%s/%s' % (T, key), '/../%s/%s' % (T, key), '/%%2e%%2e/%s/%s' % (T, key),
                '/%s?/../%s/%s' % (O, T, key), '/%s%%3f/../%s/%s' % (O, T, key), '/%s%%23/../%s/%s' % (O, T, key),
                '/%s/%%23/../../%s/%s' % (O, T, key), '/%s/%%3f/../../%s/%s' % (O, T, key), '/%s/%s/%s' % (O, T, key),
                '/%%%x%s/%s' % (ord(T[0]), T[1:], key), '/%s/%s' % (T.upper(), key), '/%s%%20/%s' % (T, key),
                '/%sx/../%s/%s' % (T, T, key), '/%s./%s' % (T, key), '/%s/../%s/%s' % (T, T, key),
                'http://localhost:9000/%s/%s' % (T, key), '/%s,%s/%s' % (O, T, key), '/%s/%s%%00' % (T, key))

found, works = {}, {}
def note(what, detail): found.setdefault(what, []).append(detail)

# Read, listed, written and removed by a path.
for path in paths(K):
    if has(MARKS, *every('GET', path)): note('read', path)
    if has(MARKS, *every('HEAD', path)): note('told', path)
    every('DELETE', path)
    listing = path[:-len(K)]
    for query in ([('list-type', '2')], [('versions', '')]):
        if has(MARKS, *every('GET', listing, query=query)): note('listed', listing)
for path in paths(MINE): every('PUT', path, body=b'tried')
works['read'] = has(OWN, send('GET', '/%s/%s' % (O, K))) and has(OWN, send('GET', '/%s/%%6fwn' % O, canonical='/%s/own' % O))
works['told'] = has(OWN, send('HEAD', '/%s/%s' % (O, K)))
works['listed'] = has(OWN, send('GET', '/%s/' % O, query=[('list-type', '2')]))
works['written'] = send('PUT', '/%s/%s' % (O, MINE), body=b'tried')[0] == 200
works['removed'] = send('DELETE', '/%s/%s' % (O, MINE))[0] == 204 and send('GET', '/%s/%s' % (O, MINE))[0] == 404

# By the name of the host.
for host in (T, T + '.localhost', T + '.localhost:9000', T + '.s3.amazonaws.com'):
    for path in ('/' + K, '/%s/%s' % (O, K), '/%s/%s' % (T, K)):
        for canonical in (path, '/%s%s' % (T, path)):
            for method in ('GET', 'DELETE') if O not in path else ('GET',):
                if has(MARKS, send(method, path, canonical=canonical, host=host)): note('host', [host, path])
            more = {name: host for name in ('x-forwarded-host', 'x-original-host', 'x-host', 'forwarded')}
            if has(MARKS, send('GET', path, canonical=canonical, **more)): note('forwarded', [host, path])
            if has(MARKS, send('GET', path, x_forwarded_prefix='/' + T)): note('prefix', path)

# Listed from one's own bucket.
for query in ('prefix', 'marker', 'start-after', 'continuation-token', 'key-marker', 'delimiter', 'version-id-marker', 'upload-id-marker'):
    for value in ('../%s/' % T, '/../%s/' % T, '..', '/', '/buckets/%s/' % T, '%%2e%%2e%%2f%s%%2f' % T, '../%s/%s' % (T, K), T + '/')[:None if ALL else 3]:
        for kind in ([('list-type', '2')], [], [('versions', '')], [('uploads', '')]):
            for more in ([], [('delimiter', '/')]) if query != 'delimiter' else ([('prefix', '../%s/' % T)],):
                if has(MARKS, send('GET', '/' + O, query=kind + [(query, value)] + more)): note('listed from own', [query, value])
works['listed from own'] = has(OWN, send('GET', '/' + O, query=[('list-type', '2'), ('prefix', 'ow'), ('delimiter', '/')]))
names = re.findall(b'<Name>([^<]*)</Name>', send('GET', '/')[1])
if any(name != O.encode() for name in names): note('buckets', repr(names))
works['buckets'] = names == [O.encode()]

# Copied into one's own bucket, as a whole and as a part.
def sources(of, key):
    for slash in ('/', '%2f', '//', '%252f', '/./', '%5c')[:None if ALL else 3]:
        for head in ('', '/', '%2f', '//'): yield head + of + slash + key
        for dots in ('..', '%2e%2e', '%252e%252e'):
            yield slash.join([O, dots, of, key])
            yield slash.join(['/' + O, 'x', dots, dots, of, key])
    yield from ('/buckets/%s/%s' % (of, key), '../buckets/%s/%s' % (of, key), 'arn:aws:s3:::%s/%s' % (of, key), '%s/%s?versionId=null' % (of, key),
                'http://localhost:9000/%s/%s' % (of, key), './%s/%s' % (of, key), '%s/../%s/%s' % (of, of, key), '%s?/../%s/%s' % (O, of, key),
                '%s#/../%s/%s' % (O, of, key), '%s/%s?versionId=../../%s/%s' % (O, K, of, key))
def copies(of):
    """What can be read afterwards in one's own bucket."""
    for source in sources(of, K):
        at = '/%s/%s' % (O, MINE)
        yield source, send('PUT', at, x_amz_copy_source=source), send('GET', at)
        send('DELETE', at)
        begun = re.search(b'<UploadId>([^<]*)<', send('POST', at, query=[('uploads', '')])[1])
        part = [('partNumber', '1'), ('uploadId', begun.group(1).decode())]
        tag = re.search(b'<ETag>([^<]*)<', send('PUT', at, query=part, x_amz_copy_source=source)[1])
        if tag:
            body = b'<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>%s</ETag></Part></CompleteMultipartUpload>' % tag.group(1)
            send('POST', at, query=part[1:], body=body)
            yield source + ' as a part', send('GET', at), (0, tag.group(1))
            send('DELETE', at)
        else: send('DELETE', at, query=part[1:])
for source, *answers in copies(T):
    if has(MARKS, *answers): note('copied', source)
own = [source for source, *answers in copies(O) if has(OWN, *answers)]
works['copied'] = all(source in own for source in (O + '/own', '/' + O + '/own', O + '/own as a part'))

# Copied into the other one, and through its uploads.
for path in paths(MINE): every('PUT', path, x_amz_copy_source='%s/%s' % (O, K))
begun = re.search(b'<UploadId>([^<]*)<', send('POST', '/%s/%s' % (O, MINE), query=[('uploads', '')])[1]).group(1).decode()
for of in ('../../' + T, begun + '/../../../' + T, begun.split('_')[0] + '/../../../' + T, '..%2f..%2f' + T, '/buckets/' + T, '.', '..', ''):
    for at in ('/%s/%s' % (O, MINE), '/%s/%s' % (T, K), '/%s/%s' % (T, MINE)):
        send('PUT', at, query=[('partNumber', '1'), ('uploadId', of)], body=b'tried')
        for answer in (send('GET', at, query=[('uploadId', of)]), send('POST', at, query=[('uploadId', of)], body=b'<CompleteMultipartUpload/>')):
            if has(MARKS, answer): note('upload', [at, of])
        send('DELETE', at, query=[('uploadId', of)])
    send('POST', '/%s/%s' % (T, MINE), query=[('uploads', '')])
works['upload'] = send('PUT', '/%s/%s' % (O, MINE), query=[('partNumber', '1'), ('uploadId', begun)], body=b'tried')[0] == 200
works['given up'] = send('DELETE', '/%s/%s' % (O, MINE), query=[('uploadId', begun)])[0] == 204

# Several at once, by forms, and by what the file server below understands.
def removal(bucket_, key):
    body = '<Delete><Object><Key>%s</Key></Object></Delete>' % key
    return send('POST', '/' + bucket_, query=[('delete', '')], body=body.encode(), content_md5=base64.b64encode(hashlib.md5(body.encode()).digest()).decode())
for key in ('../%s/%s' % (T, K), '/../%s/%s' % (T, K), 'x/../../%s/%s' % (T, K), '..%%2f%s%%2f%s' % (T, K), '/buckets/%s/%s' % (T, K)):
    removal(O, key)
    send('PUT', '/%s/%s' % (O, MINE), query=[('mv.from', '/buckets/' + key)])
    send('PUT', '/%s/%s' % (O, MINE), query=[('cp.from', '/buckets/%s/%s' % (T, K))])
    if has(MARKS, send('GET', '/%s/%s' % (O, MINE))): note('moved', key)
removal(T, K)
send('PUT', '/%s/%s' % (O, MINE), body=b'x')
works['removed at once'] = removal(O, MINE)[0] == 200 and send('GET', '/%s/%s' % (O, MINE))[0] == 404
for at in ('/' + O, '/' + T, '/%s/' % T, '/%s/../%s' % (O, T), '/%s/%%2e%%2e/%s' % (O, T)):
    for of in (O, T):
        for key in (MINE, '../%s/%s' % (T, MINE), '/../%s/%s' % (T, MINE), '${filename}/../../%s/%s' % (T, MINE)):
            status = form(key, of, at)[0]
            if at == '/' + O and of == O and key == MINE: works['form'] = status in (200, 201, 204)

# What describes a bucket and what is in it; who may; other buckets.
policy = json.dumps({'Version': '2012-10-17', 'Statement': [{'Effect': 'Allow', 'Principal': '*', 'Action': ['s3:*'],
    'Resource': ['arn:aws:s3:::%s' % T, 'arn:aws:s3:::%s/*' % T]}]}).encode()
for sub in ('acl', 'policy', 'cors', 'lifecycle', 'versioning', 'website', 'encryption', 'object-lock', 'replication', 'tagging', 'location', 'logging',
            'notification', 'ownershipControls', 'publicAccessBlock', 'policyStatus', 'inventory', 'accelerate', 'requestPayment', 'uploads', 'retention', 'legal-hold', 'torrent', 'attributes'):
    for path in ('/' + T, '/%s/%s' % (T, K), '/%s/../%s' % (O, T), '/%s/..%%2f%s' % (O, T)):
        for method, body in (('GET', b''), ('PUT', policy), ('DELETE', b''), ('PUT', b'<Tagging><TagSet/></Tagging>')):
            for status, text in every(method, path, query=[(sub, '')], body=body, x_amz_acl='public-read-write'):
                if status < 300 and path in ('/' + T, '/%s/%s' % (T, K)): note('described', [method, path, sub])
    if sub in ('acl', 'policy') and send('PUT', '/' + O, query=[(sub, '')], body=policy, x_amz_acl='public-read-write')[0] < 300: note('opened', sub)
send('PUT', '/%s/%s' % (O, K), query=[('tagging', '')], body=b'<Tagging><TagSet><Tag><Key>k</Key><Value>v</Value></Tag></TagSet></Tagging>')
works['described'] = b'<Key>k</Key>' in send('GET', '/%s/%s' % (O, K), query=[('tagging', '')])[1]
for name in (T, T + 'x', T + '-x', T[:-1], T + '.' + O, O + '-x', O + 'x', 'another-bucket', '%s%%2f..%%2f%s' % (O, T), '.uploads', '..'):
    for method in ('PUT', 'DELETE'):
        if send(method, '/' + name)[0] < 300: note('bucket', [method, name])
    if has(MARKS, send('GET', '/' + name, query=[('list-type', '2')])): note('bucket', name)

# Keys of others.
text = policy.decode()
for action, more in {'ListUsers': {}, 'GetUser': {'UserName': T}, 'CreateUser': {'UserName': MINE}, 'DeleteUser': {'UserName': T},
        'UpdateUser': {'UserName': T, 'NewUserName': MINE}, 'CreateAccessKey': {'UserName': T}, 'ListAccessKeys': {'UserName': T},
        'PutUserPolicy': {'UserName': O, 'PolicyName': 'bucket', 'PolicyDocument': text}, 'GetUserPolicy': {'UserName': T, 'PolicyName': 'bucket'},
        'DeleteUserPolicy': {'UserName': T, 'PolicyName': 'bucket'}, 'CreatePolicy': {'PolicyName': MINE, 'PolicyDocument': text}, 'ListPolicies': {},
        'AttachUserPolicy': {'UserName': O, 'PolicyArn': 'arn:aws:iam:::policy/' + T}, 'ListGroups': {}, 'ListRoles': {}, 'CreateGroup': {'GroupName': MINE},
        'CreateServiceAccount': {'ParentUser': T}, 'ListServiceAccounts': {}, 'GetAccountAuthorizationDetails': {},
        'AssumeRole': {'RoleArn': 'arn:aws:iam::0:role/' + T, 'RoleSessionName': 'x'}, 'GetFederationToken': {'Name': T, 'Policy': text}}.items():
    body = words([('Action', action), ('Version', '2010-05-08'), *more.items()]).encode()
    for service in ('iam', 's3', 'sts'):
        for path in ('/', '/iam', '/sts'):
            status, said = send('POST', path, body=body, service=service, content_type='application/x-www-form-urlencoded')
            if status < 300 and b'<Error>' not in said: note('keys', [action, service, path])

# From outside, as whoever has an address that these keys signed.
base = os.environ['S3_URL']
for path in list(paths(K, False))[:None if ALL else 12]:
    for canonical in ways(path):
        if has(MARKS, presigned('GET', path, canonical, base)): note('presigned', path)
    presigned('DELETE', path, path, base)
    if has(MARKS, presigned('GET', path, path, '%URL%')): note('presigned there', path)
works['presigned'] = has(OWN, presigned('GET', '/%s/%s' % (O, K), '/%s/%s' % (O, K), base))
tell({'found': found, 'fails': [what for what, well in works.items() if not well]})
