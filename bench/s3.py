"""A real client of S3 storage, small enough to be sent into a workspace: requests signed as AWS has it (version 4).

As a program it fills the bucket that its environment names: `s3.py 300x1 60x5` puts 300 objects of 1 MiB and 60 of 5.
"""

import datetime
import hashlib
import hmac
import http.client
import os
import sys
import urllib.parse


class Client:
    """Requests to one server with one pair of keys."""

    def __init__(self, endpoint, access_key, secret_key, region="us-east-1"):
        self.address = endpoint.removeprefix("http://").rstrip("/")
        self.access_key, self.secret_key, self.region = access_key, secret_key, region

    def ask(self, method, path, body=b"", service="s3", content_type=None):
        """Status and body of the answer. Whoever does not answer raises OSError."""
        headers = self.signed(method, path, body, service)
        if content_type:
            headers["content-type"] = content_type
        connection = http.client.HTTPConnection(self.address, timeout=120)
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except http.client.HTTPException as error:
            raise OSError(f"no answer: {error}") from error
        finally:
            connection.close()

    def signed(self, method, path, body, service):
        stamp = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        digest = hashlib.sha256(body).hexdigest()
        headers = {"host": self.address, "x-amz-content-sha256": digest, "x-amz-date": stamp}
        names = ";".join(headers)
        lines = "".join(f"{name}:{value}\n" for name, value in headers.items())
        text = "\n".join([method, path, "", lines, names, digest])
        scope = f"{stamp[:8]}/{self.region}/{service}/aws4_request"
        to_sign = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(text.encode()).hexdigest()])
        key = f"AWS4{self.secret_key}".encode()
        for word in scope.split("/"):
            key = hmac.digest(key, word.encode(), "sha256")
        signature = hmac.digest(key, to_sign.encode(), "sha256").hex()
        credential = f"{self.access_key}/{scope}"
        headers["authorization"] = f"AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={names}, Signature={signature}"
        return headers

    def must(self, *arguments, **more):
        status, body = self.ask(*arguments, **more)
        if status // 100 != 2:
            raise RuntimeError(f"{arguments[:2]}: {status} {body[:300]}")
        return body

    def iam(self, action, **parameters):
        """One action on users, which the server's S3 port takes too."""
        form = urllib.parse.urlencode({"Action": action, "Version": "2010-05-08"} | parameters).encode()
        return self.must("POST", "/", form, service="iam", content_type="application/x-www-form-urlencoded")


def main():
    keys = [os.environ[f"S3_{name}"] for name in ["ENDPOINT", "ACCESS_KEY", "SECRET_KEY", "REGION"]]
    client, bucket = Client(*keys), os.environ["S3_BUCKET"]
    for some in sys.argv[1:]:
        many, mib = map(int, some.split("x"))
        for number in range(many):
            client.must("PUT", f"/{bucket}/{mib}-mib-{number:04}", os.urandom(mib << 20))


if __name__ == "__main__":
    main()
