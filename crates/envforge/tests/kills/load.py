# A client of one data service: makes numbered things for ever, and writes a number down only after the server said that
# it has the thing. A number is asked for once: what fails is not tried again, the next one is. `read` lists what is there.
import hashlib, itertools, os, smtplib, socket, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

sys.path.insert(0, '@BOTO3@')
# Between two things: what is made in a minute must fit into an inbox.
PAUSE = {'rows': 0.01, 'queue': 0.01, 'objects': 0.06, 'mails': 0.1}


def of(name):
    """What the object of this name holds: a few octets to some tens of kilobytes."""
    digest = hashlib.sha256(name.encode()).digest()
    return digest * (1 + digest[0] * 4)


def rows():
    words = ['psql', os.environ['DATABASE_URL'], '-XqAt', '-v', 'ON_ERROR_STOP=1']
    psql = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def put(name):
        psql.stdin.write(f"insert into made(name) values ('{name}') returning name;\n")
        if psql.stdout.readline().strip() != name:
            psql.kill()
            psql.wait()
            raise OSError('no answer')
    return put


def redis():
    at = urlsplit(os.environ['QUEUE_URL'])
    stream = socket.create_connection((at.hostname, at.port), 10)
    answers = stream.makefile('rb')

    def answer():
        line = answers.readline()
        mark, rest = line[:1], line[1:].strip()
        if mark in (b'+', b':'):
            return rest.decode()
        if mark == b'$':
            return answers.read(int(rest) + 2)[:-2].decode()
        if mark == b'*':
            return [answer() for _ in range(int(rest))]
        raise OSError(line.decode() or 'no answer')

    def call(*words):
        words = [word.encode() for word in words]
        stream.sendall(b'*%d\r\n' % len(words) + b''.join(b'$%d\r\n%s\r\n' % (len(w), w) for w in words))
        return answer()
    call('SELECT', at.path.strip('/') or '0')
    return call


def queue():
    call = redis()
    return lambda name: call('RPUSH', 'made', name)


def storage():
    import boto3
    from botocore.config import Config
    own = os.environ
    config = Config(s3={'addressing_style': 'path'}, retries={'max_attempts': 0, 'mode': 'standard'}, connect_timeout=5,
                    read_timeout=20)
    return own['S3_BUCKET'], boto3.client(
        's3', endpoint_url=own['S3_ENDPOINT'], region_name=own['S3_REGION'], config=config,
        aws_access_key_id=own['S3_ACCESS_KEY'], aws_secret_access_key=own['S3_SECRET_KEY'])


def objects():
    bucket, s3 = storage()
    return lambda name: s3.put_object(Bucket=bucket, Key=name, Body=of(name))


def mails():
    smtp = smtplib.SMTP(os.environ['SMTP_HOST'], int(os.environ['SMTP_PORT']), timeout=20)

    def put(name):
        smtp.sendmail('ada@example.com', ['bob@example.com'], f'Subject: {name}\n\nHello')
    return put


def make(kind, connect):
    me, numbers = os.urandom(4).hex(), itertools.count()
    acknowledged = os.open(f'/workspace/{kind}.acknowledged', os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    while True:
        try:
            put = connect()
            while True:
                name = f'{me}-{next(numbers):06}'
                put(name)
                os.write(acknowledged, f'{name}\n'.encode())
                time.sleep(PAUSE[kind])
        except Exception as error:
            print(kind, type(error).__name__, error, flush=True)
            time.sleep(0.05)


def read_objects():
    bucket, s3 = storage()
    pages = s3.get_paginator('list_objects_v2').paginate(Bucket=bucket)
    names = [held['Key'] for page in pages for held in page.get('Contents', [])]

    def whole(name):
        return s3.get_object(Bucket=bucket, Key=name)['Body'].read() == of(name)
    with ThreadPoolExecutor(4) as some:
        return [name if good else f'{name} IS WRONG' for name, good in zip(names, some.map(whole, names))]


def read(kind):
    if kind == 'rows':
        words = ['psql', os.environ['DATABASE_URL'], '-XqAtc', 'select name from made order by number']
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()
    return redis()('LRANGE', 'made', '0', '-1') if kind == 'queue' else read_objects()


if sys.argv[1] == 'read':
    print('\n'.join(read(sys.argv[2])))
else:
    make(sys.argv[1], {'rows': rows, 'queue': queue, 'objects': objects, 'mails': mails}[sys.argv[1]])
