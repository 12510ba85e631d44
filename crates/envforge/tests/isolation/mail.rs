//! Mail: what a workspace sends comes to its own inbox whomever it is addressed to, and nobody else sends to it or reads it.

use super::world::World;
use serde_json::{Value, json};

const SEND: &str = r"
import smtplib, socket
from concurrent.futures import ThreadPoolExecutor
from email.message import EmailMessage
def send(host, to='x@example.com', port=1025):
    mail = EmailMessage()
    mail['From'], mail['To'], mail['Subject'] = 'a@example.com', 'b@example.com', 'tried from %FROM%'
    try:
        with smtplib.SMTP(host, port, timeout=2) as smtp: smtp.send_message(mail, to_addrs=[to])
    except (OSError, smtplib.SMTPException): return False
    return True
others, taken = %OTHERS%, 0
doors = [(host, port) for host in others for port in (1025, 8025, 25, 587)]
# All at once: each waits for its time to be over.
with ThreadPoolExecutor(len(doors)) as pool: open_ = [door for door, sent in zip(doors, pool.map(lambda door: send(door[0], port=door[1]), doors)) if sent]
# To one's own server, for someone elsewhere: it delivers nothing.
for host in others: taken += send('localhost', 'x@[%s]' % host) + send('localhost', '@%s:x@example.com' % host) + send('localhost', 'x%%%s@localhost' % host)
for name in %NAMES%: taken += send('localhost', name + '@localhost')
def opens(at):
    try: socket.socket(socket.AF_UNIX).connect(at)
    except OSError: return False
    return True
tell({'open': open_, 'taken': taken > len(others), 'at its own address': send('%OWN%'), 'inboxes': [at for at in %INBOXES% if opens(at) or os.path.lexists(at)]})
";

fn inbox(world: &World, workspace: &str) -> Vec<[String; 2]> {
    let inbox = world.local().json(&["mail", workspace]);
    let text = |message: &Value, field: &str| message[field].as_str().expect("text").to_owned();
    let messages = inbox["messages"].as_array().expect("messages").iter();
    messages.map(|message| ["id", "subject"].map(|field| text(message, field))).collect()
}

fn subjects(world: &World, workspace: &str) -> Vec<String> {
    inbox(world, workspace)
        .into_iter()
        .map(|[_, subject]| subject)
        .filter(|subject| !subject.starts_with("tried"))
        .collect()
}

#[test]
fn mail_of_a_workspace_is_sent_to_read_and_kept_by_itself_alone() {
    let Some(world) = World::get() else { return };
    let local = world.local();
    let all = ["a", "b", "c", "f"];
    // What came before the fork is in both, what came later where it came; also to one that sleeps.
    let are_whole = || {
        for workspace in all {
            let name = if workspace == "f" { "a" } else { workspace };
            assert_eq!(subjects(&world, workspace), [format!("only of {workspace}"), format!("of {name}")]);
        }
    };
    are_whole();
    let newest =
        |workspace| inbox(&world, workspace).into_iter().find(|[_, subject]| subject.starts_with("only")).expect("one");
    for (from, whose) in [("a", "b"), ("b", "a"), ("a", "c"), ("a", "f"), ("f", "a")] {
        let [id, _] = newest(whose);
        // By the command line inside, which asks the host's socket; by the id of the message, too.
        let inside = |words: &str| local.inside(from, &format!("envforge mail {words}"));
        assert!(!inside(whose).status.success() && inside(whose).stdout.is_empty(), "{whose} in {from}");
        let guessed = inside(&format!("--show {id}"));
        assert_eq!((guessed.status.code(), guessed.stdout.len()), (Some(3), 0), "{whose} in {from}: {guessed:?}");
        assert!(inside(&format!("--show {}", newest(from)[0])).status.success(), "one's own is shown");
        let asked = "curl -sS --unix-socket /run/envforge/host.sock http://x/host/v1/workspaces";
        let of = |who: &str, what: &str| {
            let id = local.status(who)["id"].as_str().expect("an id").to_owned();
            local.inside_ok(from, &format!("{asked}/{id}/{what}"))
        };
        for what in ["mail".to_owned(), format!("mail/{id}"), "mail/latest".to_owned()] {
            let said = of(whose, &what);
            assert!(said.contains("not_found") && !said.contains("only of"), "{what} of {whose} in {from}: {said}");
        }
        assert!(of(from, "mail").contains(&format!("only of {from}")));
    }

    for (from, others) in [("a", ["b", "f"]), ("b", ["a", "f"]), ("f", ["a", "b"])] {
        let addresses = others.map(|other| world.address(other));
        let inboxes = all.map(|whose| local.workspace_dir(whose).join("data/mailpit/inbox.sock"));
        let own = ["/run/envforge-data/mailpit/inbox.sock".into()];
        let script = SEND
            .replace("%FROM%", from)
            .replace("%OTHERS%", &json!(addresses).to_string())
            .replace("%NAMES%", &json!(others).to_string())
            .replace("%OWN%", &world.address(from))
            .replace("%INBOXES%", &json!([&inboxes[..], &own[..]].concat()).to_string());
        let whole = json!({ "open": [], "taken": true, "at its own address": true, "inboxes": [] });
        assert_eq!(world.inside(from, &script), whole, "from {from}");
    }
    are_whole();
    for workspace in ["a", "b", "f"] {
        let tried = inbox(&world, workspace).into_iter().filter(|[_, subject]| subject.starts_with("tried"));
        let by_itself = format!("tried from {workspace}");
        assert!(tried.into_iter().all(|[_, subject]| subject == by_itself), "{workspace} has mail of another one");
    }

    // Whoever took over a data service reads the inbox of its own workspace, and no other.
    let theirs = local.workspace_dir("b").join("data/mailpit/inbox.sock");
    let ask =
        |at: &str| format!("curl -s -m 2 --unix-socket {at} http://x/api/v1/messages | grep -o 'only of .' | sort -u");
    let script =
        format!("{}\n{}\necho end", ask("/run/envforge-data/mailpit/inbox.sock"), ask(&theirs.to_string_lossy()));
    local.inside_ok("a", &format!("cat > /tmp/mail.sh <<'END'\n{script}\nEND\nchmod 644 /tmp/mail.sh"));
    let sql = "create temp table said(t text); copy said from program 'bash /tmp/mail.sh'; table said";
    assert_eq!(world.as_superuser("a", "a", sql), (true, "only of a\nend".into()));
    world.unharmed(&["a", "b", "f"], "mail of every kind");
}
