// The console: reads the public API and shows what it says.
//
// Everything that came from a device or a person goes in through textContent: a payload is text,
// whatever it looks like. The key, where one is asked for, lives in this tab only.
"use strict";

const POLL_MS = 3000;
const RECONNECT_MS = [1000, 2000, 5000, 10000];
const SCREEN_MAX = 200;
const KEY = "watchbell-key";
const NAME = "watchbell-name"; // who acknowledges

const byId = (id) => document.getElementById(id);
const open = new Set(); // the messages whose trail is shown

/** An element with a class and text; `text` may be anything that prints. */
function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined && text !== null) made.textContent = String(text);
  return made;
}

function setPill(pill, kind, text) {
  pill.className = "pill " + kind;
  pill.textContent = text;
}

// The API ----------------------------------------------------------------------------------------

class KeyNeeded extends Error {}

async function fetched(path, options) {
  const key = sessionStorage.getItem(KEY);
  const headers = key ? { authorization: "Bearer " + key } : {};
  const response = await fetch(path, { headers, cache: "no-store", ...options });
  if (response.status === 401) {
    if (key) {
      if (sessionStorage.getItem(KEY) === key) sessionStorage.removeItem(KEY);
      byId("key-wrong").hidden = false;
    }
    throw new KeyNeeded();
  }
  return response;
}

async function ask(path, signal) {
  const response = await fetched(path, { signal });
  if (!response.ok) throw new Error(path + ": " + response.status);
  return response;
}

const json = async (path) => (await ask(path)).json();

let keyGiven = () => {};

/** Shows the form and waits until somebody has given a key. */
async function needKey() {
  if (byId("key-form").hidden) {
    byId("key-form").hidden = false;
    byId("key").focus(); // the form may be out of sight
  }
  setPill(byId("ready"), "slow", "key needed");
  await new Promise((resolve) => {
    const before = keyGiven;
    keyGiven = () => { before(); resolve(); };
  });
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, byId("key").value.trim());
  byId("key").value = "";
  byId("key-wrong").hidden = true;
  byId("key-form").hidden = true;
  const waiting = keyGiven;
  keyGiven = () => {};
  waiting();
});

/** Puts rows in place of others; what had the focus has it again. */
function replaceRows(list, rows) {
  const focused = list.contains(document.activeElement) ? document.activeElement.dataset.id : null;
  list.replaceChildren(...rows);
  if (focused) list.querySelector('[data-id="' + CSS.escape(focused) + '"]')?.focus({ preventScroll: true });
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// The phone --------------------------------------------------------------------------------------

/** Calls `told(event, data)` for each server-sent event until the stream ends. */
async function readEvents(response, told) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    buffer += value;
    for (let end = buffer.indexOf("\n\n"); end >= 0; end = buffer.indexOf("\n\n")) {
      let name = "message";
      const data = [];
      for (const line of buffer.slice(0, end).split("\n")) {
        if (line.startsWith("event:")) name = line.slice(6).trim();
        if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
      }
      buffer = buffer.slice(end + 2);
      if (data.length > 0) told(name, data.join("\n"));
    }
  }
}

async function followPhone() {
  const live = byId("live");
  for (let failures = 0; ; ) {
    const stopper = new AbortController();
    try {
      const response = await ask("/v1/phone/events", stopper.signal);
      byId("screen").replaceChildren(); // the stream begins with what is on the screen
      showEmptyScreen();
      setPill(live, "good", "live");
      failures = 0;
      const begun = Date.now();
      await readEvents(response, (name, data) => {
        if (name === "lagged") stopper.abort();
        if (name !== "shown") return;
        show(JSON.parse(data), Date.now() - begun > 500);
        refreshSoon();
      });
    } catch (error) {
      if (error instanceof KeyNeeded) {
        setPill(live, "slow", "key needed");
        await needKey();
        continue;
      }
    }
    setPill(live, "slow", "reconnecting");
    await pause(RECONNECT_MS[Math.min(failures, RECONNECT_MS.length - 1)]);
    failures += 1;
  }
}

function show(message, isNew) {
  const screen = byId("screen");
  const cleared = message.alert && message.alert.state === "cleared";
  const item = element("li", cleared ? "cleared" : message.severity);
  item.dataset.id = message.id;
  if (isNew) item.classList.add("new");

  const meta = element("div", "meta");
  meta.append(element("span", "channel", message.channel));
  meta.append(element("time", null, new Date(message.at).toLocaleTimeString()));
  item.append(meta);
  if (message.title) item.append(element("div", "title", message.title));
  item.append(element("div", "text", message.text));

  const whom = message.contact ? message.contact + ", " + message.address : message.address;
  const foot = element("div", "meta");
  foot.append(element("span", null, "to " + whom));
  foot.append(element("span", null, message.alert ? message.alert.rule : "no rule"));
  item.append(foot);

  for (const earlier of screen.children) {
    if (earlier.dataset.id === message.id) { earlier.remove(); break; }
  }
  screen.prepend(item);
  while (screen.children.length > SCREEN_MAX) screen.lastElementChild.remove();
  showEmptyScreen();
}

function showEmptyScreen() {
  byId("screen-empty").hidden = byId("screen").children.length > 0;
}

// The rest ---------------------------------------------------------------------------------------

let refreshing = false;
let again = false;

/** Refreshes now, and once more if it is asked for while it runs. */
async function refreshSoon() {
  if (refreshing) { again = true; return; }
  refreshing = true;
  try {
    do {
      again = false;
      await refresh();
    } while (again);
  } finally {
    refreshing = false;
  }
}

async function refresh() {
  try {
    const [status, page, alerts] = await Promise.all([
      json("/v1/status"), json("/v1/messages?limit=100"), json("/v1/alerts?limit=100"),
    ]);
    showStatus(status);
    showAlerts(alerts);
    showMessages(page.messages);
  } catch (error) {
    if (error instanceof KeyNeeded) {
      await needKey();
      again = true;
    } else {
      setPill(byId("ready"), "bad", "no answer");
    }
  }
}

function showStatus(status) {
  if (status.ready) setPill(byId("ready"), "good", "ready");
  else setPill(byId("ready"), "bad", status.reason);
  byId("about").textContent = "version " + status.version + ", up " + length(status.uptime_secs);
  byId("waiting").textContent = status.outbox.waiting > 0 ? status.outbox.waiting + " waiting" +
    (status.outbox.oldest_at ? ", the oldest since " + new Date(status.outbox.oldest_at).toLocaleTimeString() : "") : "";

  byId("listeners").replaceChildren(...status.listeners.flatMap((listener) => [
    element("dt", null, listener.protocol), element("dd", null, listener.address),
  ]));
  byId("lanes").replaceChildren(...status.lanes.map(lane));

  const rules = status.rules;
  byId("rules-count").textContent = rules.rules.length + " in force";
  byId("rules").replaceChildren(...rules.rules.slice(0, 100).map((rule) => {
    const item = element("li", null, rule.name);
    item.append(element("span", "quiet sev-" + rule.severity, rule.severity));
    item.append(element("span", "quiet", rule.topic));
    return item;
  }));
  byId("problems").hidden = rules.problems.length === 0;
  byId("problem-list").replaceChildren(...rules.problems.map((text) => element("li", null, text)));
  showHints(status);
}

// Alerts -----------------------------------------------------------------------------------------

let acknowledging = null; // the alert that the form is about
let alertsShown = "";

function showAlerts(page) {
  const said = JSON.stringify(page);
  if (said === alertsShown) return; // somebody may be about to press a button
  alertsShown = said;
  byId("alerts-card").hidden = page.total === 0;
  const more = page.total > page.alerts.length ? ", " + page.alerts.length + " of them here" : "";
  byId("alerts-count").textContent = page.total + more;
  replaceRows(byId("alerts"), page.alerts.map(alertRow));
  if (!page.alerts.some((alert) => alert.id === acknowledging && alert.state === "firing")) closeAck();
}

function alertRow(alert) {
  const row = element("tr");
  const state = element("td");
  const kind = { firing: "bad", acknowledged: "good" }[alert.state] || "slow";
  state.append(element("span", "pill " + kind, alert.state));
  if (alert.state === "pending" && alert.next_at) {
    state.append(element("div", "because", "fires at " + new Date(alert.next_at).toLocaleTimeString()));
  }
  if (alert.ack) {
    state.append(element("div", "because", [alert.ack.by, alert.ack.note].filter(Boolean).join(": ")));
  }
  const what = element("td", "text");
  what.append(element("span", "sev-" + alert.severity, "● "), alert.text || alert.topic);
  what.append(element("div", "because", (alert.rule + " " + alert.key).trim() + (alert.shadow ? ", in shadow" : "")));
  const told = element("td", "to");
  for (const one of alert.told) {
    const [kind, how] = toldHow(one);
    told.append(element("div", "because " + kind, one.contact + how));
  }
  const act = element("td");
  if (alert.state === "firing") {
    const button = element("button", null, "Acknowledge");
    button.type = "button";
    button.dataset.id = alert.id;
    button.addEventListener("click", () => openAck(alert));
    act.append(button);
  }
  row.append(state, element("td", "when", new Date(alert.since).toLocaleString()), what, told, act);
  return row;
}

/** How a contact stands: held, told, or with a message that waits or was lost. */
function toldHow(one) {
  if (one.held) return ["", ": " + one.held.reason];
  if (!one.knows) return ["", ": nothing"];
  const status = one.message ? one.message.status : "sent";
  if (KINDS[status] === "good") return ["", ""];
  return [KINDS[status] || "", ": " + status + (one.message.reason ? ", " + one.message.reason : "")];
}

function openAck(alert) {
  acknowledging = alert.id;
  byId("ack-what").textContent = (alert.rule + " " + alert.key).trim();
  byId("ack-form").hidden = false;
  byId("ack-problem").hidden = true;
  byId("ack-by").value = byId("ack-by").value || sessionStorage.getItem(NAME) || "";
  byId(byId("ack-by").value ? "ack-note" : "ack-by").focus();
}

function closeAck() {
  acknowledging = null;
  byId("ack-form").hidden = true;
}

byId("ack-cancel").addEventListener("click", closeAck);

byId("ack-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const id = acknowledging;
  const by = byId("ack-by").value.trim();
  const note = byId("ack-note").value.trim();
  if (!id || !by) return;
  sessionStorage.setItem(NAME, by);
  try {
    await acknowledge(id, by, note);
    byId("ack-note").value = "";
    closeAck();
  } catch (error) {
    byId("ack-problem").textContent = error.message;
    byId("ack-problem").hidden = false;
  }
  refreshSoon();
});

/** Changes need the key also on this machine: it is asked for where it is missing. */
async function acknowledge(id, by, note) {
  const options = { method: "POST", body: JSON.stringify(note ? { by, note } : { by }) };
  for (;;) {
    try {
      const response = await fetched("/v1/alerts/" + encodeURIComponent(id) + "/ack", options);
      if (response.ok) return;
      const problem = await response.json().catch(() => ({}));
      throw new Error(problem.detail || "not acknowledged: " + response.status);
    } catch (error) {
      if (!(error instanceof KeyNeeded)) throw error;
      await needKey();
    }
  }
}

// Lanes and what to type -------------------------------------------------------------------------

function lane(lane) {
  const row = element("tr");
  const name = element("td", null, lane.provider);
  name.append(element("div", "because", lane.kind));
  const state = element("td");
  const kind = { up: "good", stopped: "bad" }[lane.state] || "slow";
  state.append(element("span", "pill " + kind, lane.state.replace("_", " ")));
  const because = [lane.reason, lane.detail].filter(Boolean).join(": ");
  if (because) state.append(element("div", "because", because));
  if (lane.until) {
    state.append(element("div", "because", "tried again at " + new Date(lane.until).toLocaleTimeString()));
  }
  row.append(name, element("td", null, lane.channels.join(", ")), state);
  row.append(element("td", "number", lane.in_flight), element("td", "number", lane.ready));
  return row;
}

let hintsShown = "";

function showHints(status) {
  const listener = status.listeners.find((one) => one.protocol === "mqtt");
  const hint = status.hint;
  byId("hint").hidden = !hint || !listener;
  if (!hint || !listener) return;
  const at = listener.address.lastIndexOf(":");
  let host = listener.address.slice(0, at).replace(/^\[|\]$/g, "");
  if (host === "0.0.0.0" || host === "::") host = "127.0.0.1";
  const port = listener.address.slice(at + 1);
  const what = quote(hint.topic) + " -m " + quote(hint.payload);
  const commands = [
    "mosquitto_pub -h " + host + " -p " + port + " -q 1 -t " + what,
    "watchbell pub " + quote(hint.topic) + " " + quote(hint.payload),
  ];
  if (hintsShown === commands.join("\n")) return; // somebody may be selecting it
  hintsShown = commands.join("\n");
  byId("hints").replaceChildren(...commands.map((text) => {
    const line = element("div", "command");
    line.append(element("code", null, text));
    const copy = element("button", null, "Copy");
    copy.type = "button";
    copy.addEventListener("click", async () => {
      await navigator.clipboard.writeText(text);
      copy.textContent = "Copied";
      await pause(1500);
      copy.textContent = "Copy";
    });
    if (navigator.clipboard) line.append(copy);
    return line;
  }));
}

/** Quotes for a shell. */
const quote = (text) => "'" + text.replaceAll("'", "'\\''") + "'";

const KINDS = {
  queued: "slow", sending: "slow", sent: "good", delivered: "good", read: "good",
  undelivered: "bad", failed: "bad", expired: "bad", canceled: "",
};

let messagesShown = "";

function showMessages(messages) {
  const said = JSON.stringify(messages);
  if (said === messagesShown) return;
  messagesShown = said;
  byId("messages-empty").hidden = messages.length > 0;
  replaceRows(byId("messages"), messages.flatMap((message) => {
    const row = element("tr", "open-able");
    row.tabIndex = 0;
    row.dataset.id = message.id;
    const status = element("td");
    status.append(element("span", "pill " + KINDS[message.status], message.status));
    const because = [message.reason, message.detail].filter(Boolean).join(": ");
    if (because) status.append(element("div", "because", because));
    const when = element("td", "when", new Date(message.created_at).toLocaleTimeString());
    const to = element("td", "to", message.contact || message.address);
    to.append(element("div", "because", message.channel));
    const text = element("td", "text");
    text.append(element("span", "sev-" + message.severity, "● "), message.text);
    if (message.alert) text.append(element("div", "because", message.alert.rule));
    row.append(status, when, to, text);

    const trail = element("tr");
    trail.hidden = !open.has(message.id);
    const cell = element("td");
    cell.colSpan = 4;
    trail.append(cell);
    if (!trail.hidden) showTrail(message.id, cell);
    const toggle = () => {
      trail.hidden = !trail.hidden;
      if (trail.hidden) open.delete(message.id);
      else { open.add(message.id); showTrail(message.id, cell); }
    };
    row.addEventListener("click", toggle);
    row.addEventListener("keydown", (event) => { if (event.key === "Enter") toggle(); });
    return [row, trail];
  }));
}

/** What happened to a message, attempt by attempt. */
async function showTrail(id, cell) {
  let message;
  try {
    message = await json("/v1/messages/" + encodeURIComponent(id));
  } catch {
    return; // the next refresh says what is wrong
  }
  const time = (text) => new Date(text).toLocaleString();
  const lines = [time(message.created_at) + ": entered the outbox"];
  for (const note of message.fallback?.notes || []) lines.push(time(note.at) + ": " + note.text);
  for (const attempt of message.attempts) {
    const because = [attempt.reason, attempt.detail].filter(Boolean).join(": ");
    const what = "attempt " + attempt.number + " by " + attempt.provider + ": " + attempt.outcome;
    lines.push(time(attempt.ended_at || attempt.started_at) + ": " + what + (because ? ", " + because : ""));
  }
  if (message.due_at) lines.push(time(message.due_at) + ": next attempt due");
  lines.push(time(message.expires_at) + ": expires");
  const list = element("ol", "trail");
  list.append(...lines.map((line) => element("li", null, line)));
  const more = element("div", "because", "watchbell outbox show " + message.id);
  cell.replaceChildren(list, more);
}

/** A length of time in its two largest units. */
function length(secs) {
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const first = Math.max(0, units.findIndex(([, size]) => secs >= size));
  return units.slice(first, first + 2)
    .map(([unit, size]) => { const count = Math.floor(secs / size); secs %= size; return count + " " + unit; })
    .join(" ");
}

async function poll() {
  for (;;) {
    if (!document.hidden) await refreshSoon();
    await pause(POLL_MS);
  }
}

document.addEventListener("visibilitychange", () => { if (!document.hidden) refreshSoon(); });
followPhone();
poll();
