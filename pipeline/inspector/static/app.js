// What every page has: keys, copying, filters that submit themselves, lists that are remembered, and a run that is followed.
const token = document.querySelector('meta[name="nava-token"]').content;
const toast = document.getElementById("toast");
let hiding = 0;

export function say(text) {
  toast.textContent = text;
  toast.classList.add("on");
  clearTimeout(hiding);
  hiding = setTimeout(() => toast.classList.remove("on"), 2200);
}

export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    say("copied");
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    say("copied");
  }
}

export async function mark(clipId, opinion, note) {
  const headers = { "content-type": "application/json", "x-nava-token": token };
  const body = JSON.stringify({ clip_id: clipId, opinion, note });
  const answer = await fetch("/marks", { method: "POST", headers, body });
  say(answer.ok ? `marked ${opinion}` : "the mark was not taken: reload the page");
  return answer.ok;
}

const keys = new Map();

export function onKey(key, act) {
  keys.set(key, act);
}

function isTyping(element) {
  if (!element) return false;
  if (element.isContentEditable || element.tagName === "TEXTAREA" || element.tagName === "SELECT") return true;
  return element.tagName === "INPUT" && !["checkbox", "range", "button"].includes(element.type);
}

const help = document.getElementById("keys");
const go = (path) => () => { location.href = path; };
onKey("?", () => help.showModal());
onKey("o", go("/"));
onKey("m", go("/measures"));
onKey("c", go("/clips"));
onKey("/", () => document.querySelector("[data-search]")?.focus());
onKey("Escape", () => {
  const back = document.querySelector("[data-back]");
  if (back) back.click();
});

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || help.open) return;
  if (isTyping(event.target)) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const isControl = event.key === " " && event.target.closest("button, a, summary, input");
  const act = keys.get(event.key);
  if (act && !isControl) {
    event.preventDefault();
    act(event);
  }
});

document.addEventListener("click", (event) => {
  const copied = event.target.closest("[data-copy]");
  if (copied) copy(copied.dataset.copy);
  if (event.target.closest("[data-help]")) help.showModal();
});

for (const field of document.querySelectorAll("[data-submit]")) {
  field.addEventListener("change", () => field.form.requestSubmit());
}
for (const form of document.querySelectorAll("form[method=get]")) {
  form.addEventListener("submit", () => {
    for (const field of form.elements) if (field.name && !field.value) field.disabled = true;
  });
}
addEventListener("pageshow", () => {
  for (const field of document.querySelectorAll("form [disabled]")) field.disabled = false;
});
for (const chooser of document.querySelectorAll("[data-insert]")) {
  chooser.addEventListener("change", () => {
    const area = document.getElementById(chooser.dataset.insert);
    if (chooser.value) area.setRangeText(`"${chooser.value}"`, area.selectionStart, area.selectionEnd, "end");
    chooser.value = "";
    area.focus();
  });
}
function withoutPicture(image) {
  image.classList.add("none");
}
for (const image of document.querySelectorAll(".poster img")) {
  if (image.complete && !image.naturalWidth) withoutPicture(image);
  image.addEventListener("error", () => withoutPicture(image));
}

// In a list, j and k move between clips and g, b, u mark the one that has the focus.
const listed = [...document.querySelectorAll("a[data-clip]")];
if (listed.length) {
  const move = (step) => () => {
    const at = listed.indexOf(document.activeElement);
    listed[Math.min(listed.length - 1, Math.max(0, at < 0 ? 0 : at + step))].focus();
  };
  onKey("j", move(1));
  onKey("k", move(-1));
  for (const [key, opinion] of [["g", "good"], ["b", "bad"], ["u", "unsure"]]) {
    onKey(key, async () => {
      const link = document.activeElement.closest?.("a[data-clip]");
      if (!link) return say("choose a clip with j and k first");
      const id = link.pathname.split("/").pop();
      if (!(await mark(id, opinion, ""))) return;
      const poster = link.querySelector(".poster");
      if (!poster) return;
      const badge = poster.querySelector(".badge") ?? poster.appendChild(document.createElement("span"));
      badge.className = `badge ${opinion}`;
      badge.textContent = opinion;
    });
  }
}

// A run that is not settled: its numbers are asked for every two seconds, and the page is drawn anew when they change.
let live = document.querySelector("[data-live]");
if (live) {
  let etag = "";
  setInterval(async () => {
    if (document.hidden) return;
    const told = await fetch("/overview.json", { headers: etag ? { "if-none-match": etag } : {}, cache: "no-store" }).catch(() => null);
    if (!told || told.status !== 200) return;
    const isFirst = !etag;
    etag = told.headers.get("etag");
    if (isFirst) return;
    const page = new DOMParser().parseFromString(await (await fetch("/")).text(), "text/html");
    const now = page.getElementById("live");
    if (now) {
      live.replaceWith(now);
      live = now;
    }
  }, 2000);
}
