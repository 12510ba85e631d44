"""A form that Django protects against requests from elsewhere: it looks at host, origin, referer and a cookie."""

import os
import sys

from django.conf import settings
from django.core.management import execute_from_command_line
from django.http import HttpResponse
from django.template import Context, Engine
from django.urls import path
from django.views.decorators.csrf import csrf_protect

settings.configure(
    DEBUG=True,
    SECRET_KEY="only for this test",
    ALLOWED_HOSTS=["localhost"],
    ROOT_URLCONF=__name__,
    MIDDLEWARE=["django.middleware.common.CommonMiddleware", "django.middleware.csrf.CsrfViewMiddleware"],
)
FORM = Engine().from_string(
    "<!doctype html><title>Django app</title><h1 id='said'>{{ said }}</h1>"
    "<form method='post'>{% csrf_token %}<input name='said'><button>Say</button></form>"
)


@csrf_protect
def form(request):
    from django.middleware.csrf import get_token

    said = request.POST.get("said", "nothing")
    return HttpResponse(FORM.render(Context({"said": said, "csrf_token": get_token(request)})))


urlpatterns = [path("", form)]

if __name__ == "__main__":
    execute_from_command_line([sys.argv[0], "runserver", "--noreload", f"127.0.0.1:{os.environ['PORT']}"])
