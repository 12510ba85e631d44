// Mail: what a reminder says, and the way it goes.

/** The mail of a reminder. */
export function reminder(title, site) {
  return {
    from: 'Scheduler <scheduler@example.com>',
    to: 'team@example.com',
    subject: `Reminder: ${title}`,
    text: `${title}\n\nScheduled on ${site ?? 'this workspace'}\n`,
  };
}

/** Sends mails, or only says so where the workspace has no mail server. */
export async function openMail(url) {
  if (!url) return { send: async (mail) => console.log(`no mail server: ${mail.subject}`), close: () => {} };
  const { default: nodemailer } = await import('nodemailer');
  const transport = nodemailer.createTransport(url);
  return { send: (mail) => transport.sendMail(mail), close: () => transport.close() };
}
