"use strict";
(() => {
const { events, assets } = document.body.dataset;
const RETRY = 4000, SILENCE = 25000;
let version = document.body.dataset.version, skew = 0, heard = Date.now(), opened = 0, lost = 0, source = null, timer = 0;
const waiting = new Map();

function span(seconds) {
  const s = Math.max(0, Math.round(seconds)), m = Math.floor(s / 60), h = Math.floor(m / 60), d = Math.floor(h / 24);
  return (s < 60 ? `${s} s` : m < 60 ? `${m} min` : h < 48 ? `${h} h ${m % 60} min` : `${d} days`).replaceAll(" ", "\u00a0");
}
function left(seconds, past) {
  if (seconds <= 0) return past;
  const s = Math.round(seconds), two = n => String(n).padStart(2, "0");
  return s < 600 ? `${Math.floor(s / 60)}:${two(s % 60)}` : span(s);
}
function clock(at, exact) {
  const when = new Date(at * 1000), today = when.toDateString() === new Date().toDateString();
  const time = when.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", ...(exact && { second: "2-digit" }) });
  return today ? time : `${when.toLocaleDateString([], { day: "numeric", month: "short" })}, ${time}`;
}
function tick() {
  const now = Date.now() / 1000 + skew;
  for (const it of document.querySelectorAll("time")) {
    const { at, since, ago, until, past } = it.dataset;
    const text = at ? clock(+at, it.closest(".log")) : since ? span(now - since) : ago ? `${span(now - ago)} ago` : left(until - now, past);
    if (it.textContent !== text) it.textContent = text;
  }
  if (lost) say(`Connection lost – trying again. What stands here is ${span((Date.now() - lost) / 1000)} old.`);
  if (source && Date.now() - Math.max(heard, opened) > SILENCE) again();
}
function say(text) {
  const link = document.getElementById("link");
  link.hidden = !text;
  if (link.textContent !== text) link.textContent = text;
}
function put(id, html) {
  const place = document.getElementById(id);
  if (!place) return location.reload();
  const chosen = getSelection();
  if (!chosen.isCollapsed && place.contains(chosen.anchorNode)) return waiting.set(id, html);
  const kept = [...place.querySelectorAll("details")].map(it => it.open);
  const scrolled = [...place.querySelectorAll(".scroll, pre")].map(it => it.scrollLeft);
  const reached = "summary, a, [tabindex]";
  const focus = [...place.querySelectorAll(reached)].indexOf(document.activeElement);
  place.innerHTML = html;
  place.querySelectorAll("details").forEach((it, i) => { it.open = kept[i] || false; });
  place.querySelectorAll(".scroll, pre").forEach((it, i) => { it.scrollLeft = scrolled[i] || 0; });
  if (focus >= 0) place.querySelectorAll(reached)[focus]?.focus({ preventScroll: true });
  const title = place.querySelector("[data-title]");
  if (title) document.title = title.dataset.title;
  tick();
}
document.addEventListener("selectionchange", () => {
  if (!getSelection().isCollapsed) return;
  const all = [...waiting];
  waiting.clear();
  all.forEach(([id, html]) => put(id, html));
});
function again() {
  source?.close();
  source = null;
  lost = lost || heard;
  clearTimeout(timer);
  timer = setTimeout(connect, RETRY);
}
async function refused() {
  again();
  try {
    const answer = await fetch(location.href, { cache: "no-store" });
    if (answer.status !== 403 && answer.status !== 404) return;
    clearTimeout(timer);
    lost = 0;
    say(answer.status === 403 ? "The token has changed: open the address that 'polyclinic coordinator watch' prints."
      : "This run is not there any more.");
  } catch { /* the server is down: tried again */ }
}
function alive(event) {
  heard = Date.now();
  if (event.lastEventId) version = event.lastEventId;
  if (lost) { lost = 0; say(""); }
}
function connect() {
  opened = Date.now();
  source = new EventSource(`${events}?seen=${encodeURIComponent(version)}`);
  source.addEventListener("hello", event => {
    const told = JSON.parse(event.data);
    if (told.assets !== assets) return location.reload();
    skew = told.now - Date.now() / 1000;
    alive(event);
  });
  source.addEventListener("beat", alive);
  source.addEventListener("fragment", event => {
    const { id, html } = JSON.parse(event.data);
    put(id, html);
    alive(event);
  });
  source.addEventListener("error", () => {
    lost = lost || heard;
    tick();
    if (source?.readyState === EventSource.CLOSED) refused();
  });
}
addEventListener("pagehide", () => source?.close());
addEventListener("pageshow", event => { if (event.persisted) location.reload(); });
setInterval(tick, 1000);
tick();
connect();
})();
