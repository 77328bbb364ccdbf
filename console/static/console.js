// Keeps a page fresh, and a few keys. Every page works without it.

const policy = window.trustedTypes?.createPolicy("console", { createHTML: (text) => text });
const read = (text) => new DOMParser().parseFromString(policy ? policy.createHTML(text) : text, "text/html");

// ---------------------------------------------------------------- fresh parts
// The same page is asked for again, and its parts that have changed are put in place of the old ones.

let isBusy = false;
let isWanted = false;
let askedAt = performance.now();

function isInUse(part) {
  if (part.querySelector("form[data-sent]")) return true;
  const fields = [...part.querySelectorAll("textarea, input:not([type=hidden]), select")];
  return fields.some((field) =>
    field === document.activeElement ||
    (field.type === "checkbox" ? field.checked !== field.defaultChecked
      : field.tagName === "SELECT" ? [...field.options].some((each) => each.selected !== each.defaultSelected) && field.selectedIndex > 0
        : field.value !== field.defaultValue));
}

// What somebody has opened is no change.
const text = (part) => part.innerHTML.replaceAll(' open=""', "");

function replace(part, fresh) {
  const focused = part.contains(document.activeElement) ? document.activeElement : null;
  const open = [...part.querySelectorAll("details")].map((each) => each.open);
  const place = focused?.getAttribute("href");
  part.replaceWith(fresh);
  fresh.querySelectorAll("details").forEach((each, number) => { each.open = open[number] ?? each.open; });
  if (place) [...fresh.querySelectorAll("a")].find((each) => each.getAttribute("href") === place)?.focus();
  if (focused?.tagName === "SUMMARY") fresh.querySelector("summary")?.focus();
}

async function refresh() {
  if (isBusy) { isWanted = true; return; }
  isBusy = true;
  askedAt = performance.now();
  try {
    const answer = await fetch(location.href, { headers: { "x-refresh": "yes" }, cache: "no-store" });
    if (answer.redirected) { location.reload(); return; }
    const page = read(await answer.text());
    for (const part of document.querySelectorAll("[data-part]")) {
      const fresh = page.getElementById(part.id);
      if (fresh && text(fresh) !== text(part) && !isInUse(part)) replace(part, document.importNode(fresh, true));
    }
    // A part that is new, such as the sums at the end of a run, or gone: the page is loaded again unless somebody writes.
    const named = (from) => [...from.querySelectorAll("[data-part]")].map((part) => part.id).join();
    if (named(page) !== named(document) && !isInUse(document.body)) { location.reload(); return; }
    const events = page.body.dataset.events ?? "";
    if (events !== (document.body.dataset.events ?? "")) { document.body.dataset.events = events; listen(); }
    lost(false);
  } catch {
    lost(true);
  } finally {
    isBusy = false;
    if (isWanted) { isWanted = false; refresh(); }
  }
}

function lost(isLost) {
  const banner = document.getElementById("lost");
  if (banner) banner.hidden = !isLost;
  const fresh = document.getElementById("fresh");
  if (fresh && !isLost) fresh.textContent = `Fresh as of ${new Date().toISOString().slice(11, 19)}.`;
}

// ---------------------------------------------------------------- what tells of a change

let source = null;

function listen() {
  source?.close();
  source = null;
  const place = document.body.dataset.events;
  if (!place) return;
  source = new EventSource(place);
  source.addEventListener("message", refresh);
  source.addEventListener("sign-in", () => location.reload());
  source.addEventListener("open", () => lost(false));
  source.addEventListener("error", () => {
    lost(true);
    // A browser gives up after an answer that is no stream, such as that of a console that has just started.
    if (source?.readyState === EventSource.CLOSED) setTimeout(listen, 3000);
  });
}

listen();

// Ages, attempts and servers that are away change without a change of what the stream tells of.
setInterval(() => {
  if (source && !document.hidden && performance.now() - askedAt >= 5000) refresh();
}, 1000);

addEventListener("pagehide", () => source?.close());
addEventListener("pageshow", (event) => { if (event.persisted) listen(); });

// ---------------------------------------------------------------- keys

addEventListener("keydown", (event) => {
  const isWriting = event.target.closest?.("input, textarea, select");
  if (event.key === "/" && !isWriting && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    document.getElementById("search")?.focus();
  }
});

// ---------------------------------------------------------------- a form is sent once

addEventListener("submit", async (event) => {
  const form = event.target;
  const file = form.id === "compare" ? document.getElementById("compare-file")?.files[0] : null;
  if (file) {
    event.preventDefault();
    await upload(form, file);
  } else if (form.method === "post") {
    if (form.dataset.sent) event.preventDefault();
    form.dataset.sent = "yes";
    setTimeout(() => delete form.dataset.sent, 10000);
  }
});

// ---------------------------------------------------------------- a CSV file is sent as it is

async function upload(form, file) {
  const fields = new FormData(form);
  const asked = new URLSearchParams({
    bank: fields.get("bank"), from: fields.get("from"), to: fields.get("to"),
    mapping: document.getElementById("compare-mapping").value,
  });
  const button = form.querySelector("button");
  button.disabled = true;
  button.textContent = "Comparing …";
  let said = "The console does not answer.";
  try {
    const answer = await fetch(`/reconciliation/csv?${asked}`, {
      method: "POST", body: file, headers: { "x-csrf": fields.get("csrf") },
    });
    const told = await answer.json();
    if (told.place) { location.assign(told.place); return; }
    said = told.problem;
  } catch { /* as above */ }
  button.disabled = false;
  button.textContent = "Compare";
  const problem = document.createElement("p");
  problem.className = "error";
  problem.setAttribute("role", "alert");
  problem.textContent = said;
  form.prepend(problem);
}
