// The player of one clip. One clock paints everything: the time of the frame that is shown while playing, else `currentTime`.
import { mark, onKey, say } from "./app.js";
import WaveSurfer from "./vendor/wavesurfer.js";

const article = document.querySelector("article.clip");
const id = article.dataset.clipId;
const length = Number(article.dataset.length);
const numFrames = Number(article.dataset.frames);
const data = JSON.parse(document.getElementById("clip-data").textContent);
const find = (name) => document.getElementById(name);
const video = find("video");
const said = find("media-said");
const words = [...document.querySelectorAll(".track.words li")].map((item) => {
  const button = item.firstElementChild;
  return { item, start: Number(button.dataset.word), end: Number(button.dataset.end), text: button.textContent };
});
const spoken = [...document.querySelectorAll("#transcript .w")];
const INSIDE_S = 0.01; // a player may stop just before the time it is sent to
let until = null;
let span = null;
let frame = null;
let wave = null;

// --- one clock

function paint(now) {
  find("time").textContent = now.toFixed(3);
  const timeline = find("timeline");
  const left = parseFloat(getComputedStyle(timeline).paddingLeft);
  find("playhead").style.left = `${left + ((timeline.clientWidth - left) * Math.min(now, length)) / length}px`;
  let caption = "";
  for (const word of words) {
    const isNow = now >= word.start && now < word.end;
    word.item.classList.toggle("now", isNow);
    if (isNow) caption += `${word.text} `;
  }
  for (const word of spoken) word.classList.toggle("now", now >= Number(word.dataset.at) && now < Number(word.dataset.end));
  find("caption").textContent = caption.trim();
  paintFaces(now);
}

function onFrame(_, metadata) {
  if (!video.paused) {
    frame = metadata.mediaTime;
    paint(frame);
    if (until !== null && frame >= until - 0.02) endOfSpan();
  }
  video.requestVideoFrameCallback(onFrame);
}

function endOfSpan() {
  if (find("loop").checked && span) return seek(span[0]);
  video.pause();
  until = null;
}

function seek(time, isPlayed) {
  video.currentTime = Math.min(Math.max(time, 0), Math.max(length - 0.001, 0));
  follow();
  if (isPlayed) video.play();
}

function play(start, end) {
  span = [start, end];
  until = end;
  seek(start, true);
}

// --- media: packed ones are there, others are cut first

const form = () => (find("as-measured")?.checked ? "?as=measured" : "");

async function load() {
  const path = `/media/${id}.mp4${form()}`;
  for (;;) {
    const answer = await fetch(path, { headers: { range: "bytes=0-1" } }).catch(() => null);
    if (answer && (answer.status === 206 || answer.status === 200)) break;
    if (!answer || answer.status !== 202) {
      const told = answer ? await answer.json().catch(() => ({})) : {};
      said.textContent = `${told.error ?? "The clip's media cannot be had."} Everything else is shown.`;
      find("wave-said").textContent = "no sound to draw";
      return;
    }
    said.textContent = "Being cut out of its source…";
    await new Promise((resolve) => setTimeout(resolve, 300));
  }
  said.textContent = "";
  const now = video.currentTime;
  video.src = path;
  if (now) video.currentTime = now;
  if (!wave) drawWave();
}
find("as-measured")?.addEventListener("change", () => {
  sound = null;
  load();
});

async function drawWave() {
  const answer = await fetch(`/peaks/${id}.json`).catch(() => null);
  if (!answer?.ok) {
    find("wave-said").textContent = "no sound to draw";
    return;
  }
  const told = await answer.json();
  const bytes = Int8Array.from(atob(told.peaks), (char) => char.charCodeAt(0));
  if (!bytes.length) {
    find("wave-said").textContent = "no sound";
    return;
  }
  const style = getComputedStyle(document.documentElement);
  find("wave-said").remove();
  wave = WaveSurfer.create({
    container: find("wave"), media: video, peaks: [Float32Array.from(bytes, (value) => value / 127)], duration: length,
    height: 67, waveColor: style.getPropertyValue("--cut-bar").trim(), progressColor: style.getPropertyValue("--accent").trim(),
    cursorWidth: 0, normalize: true, interact: true, hideScrollbar: true,
  });
}

video.addEventListener("loadedmetadata", () => {
  const wanted = Number(new URLSearchParams(location.hash.slice(1)).get("t"));
  if (wanted > 0) seek(wanted);
  paint(video.currentTime);
});
video.addEventListener("canplay", () => {
  if (!video.videoWidth) cannotShow();
});
video.addEventListener("error", () => video.currentSrc && cannotShow());
function cannotShow() {
  said.textContent = "This browser cannot show the picture of this file. ";
  const link = document.createElement("a");
  link.href = `/media/${id}.mp4?as=measured`;
  link.textContent = "Encode it anew";
  said.append(link);
}
for (const name of ["seeked", "pause", "timeupdate"]) {
  video.addEventListener(name, () => video.paused && paint(video.currentTime));
}
const playing = document.querySelector("[data-do=play]");
video.addEventListener("play", () => { playing.textContent = "Pause"; follow(); });
video.addEventListener("pause", () => { playing.textContent = "Play"; follow(); });
video.addEventListener("ended", () => find("loop").checked && span && play(...span));

// --- controls

function step(frames) {
  video.pause();
  const per = length / numFrames;
  const at = Math.floor(video.currentTime / per + 1e-6);
  seek((Math.min(Math.max(at + frames, 0), numFrames - 1) + 0.5) * per);
}

function faster(by) {
  const speed = find("speed");
  speed.selectedIndex = Math.min(Math.max(speed.selectedIndex + by, 0), speed.options.length - 1);
  speed.dispatchEvent(new Event("change"));
}

function nextSpan(by) {
  const starts = data.spans.map((each) => [each.start_s, each.end_s]);
  if (!starts.length) return say("nobody speaks here");
  const now = video.currentTime;
  const later = starts.findIndex(([start]) => start > now + 0.05);
  let at = by > 0 ? later : (later < 0 ? starts.length : later) - 2;
  at = Math.min(Math.max(at < 0 && by > 0 ? starts.length - 1 : at, 0), starts.length - 1);
  play(...starts[at]);
}

const toggle = () => {
  until = null;
  if (video.paused) video.play();
  else video.pause();
};
find("speed").addEventListener("change", (event) => {
  video.playbackRate = Number(event.target.value);
  if (sound) sound.playbackRate = video.playbackRate;
});
document.querySelector("[data-do=frame-back]").addEventListener("click", () => step(-1));
document.querySelector("[data-do=frame-on]").addEventListener("click", () => step(1));
playing.addEventListener("click", toggle);
document.addEventListener("click", (event) => {
  const word = event.target.closest("[data-word], .w");
  if (word) return seek(Number(word.dataset.word ?? word.dataset.at) + INSIDE_S);
  const stretch = event.target.closest("[data-span]");
  if (stretch) play(Number(stretch.dataset.span), Number(stretch.dataset.end));
});

onKey(" ", toggle);
onKey(",", () => step(-1));
onKey(".", () => step(1));
onKey("[", () => nextSpan(-1));
onKey("]", () => nextSpan(1));
onKey("-", () => faster(-1));
onKey("=", () => faster(1));
onKey("l", () => { find("loop").checked = !find("loop").checked; say(find("loop").checked ? "repeating the span" : "not repeating"); });
for (let tenth = 0; tenth < 10; tenth += 1) onKey(String(tenth), () => seek((length * tenth) / 10));
for (const link of document.querySelectorAll("[data-key]")) onKey(link.dataset.key, () => link.click());
onKey("j", () => document.querySelector("[data-key=j]")?.click() ?? say("this is the last one"));
onKey("k", () => document.querySelector("[data-key=k]")?.click() ?? say("this is the first one"));

// --- faces

const faces = find("faces");
function paintFaces(now) {
  const isShown = find("show-faces")?.checked ?? false;
  if (!isShown || !video.videoWidth) return faces.replaceChildren();
  const scale = Math.min(video.clientWidth / video.videoWidth, video.clientHeight / video.videoHeight);
  const [wide, tall] = [video.videoWidth * scale, video.videoHeight * scale];
  Object.assign(faces.style, {
    width: `${wide}px`, height: `${tall}px`,
    left: `${video.offsetLeft + (video.clientWidth - wide) / 2}px`, top: `${video.offsetTop + (video.clientHeight - tall) / 2}px`,
  });
  const boxes = data.boxes.filter((box) => now >= box.start_s && now < box.end_s);
  faces.replaceChildren(...boxes.map((box) => {
    const drawn = document.createElement("i");
    Object.assign(drawn.style, { left: `${100 * box.x}%`, top: `${100 * box.y}%`, width: `${100 * box.width}%`, height: `${100 * box.height}%` });
    const name = document.createElement("b");
    name.textContent = `face ${box.track}`;
    drawn.append(name);
    return drawn;
  }));
}
find("show-faces")?.addEventListener("change", () => paint(video.currentTime));
onKey("f", () => { const box = find("show-faces"); if (box) { box.checked = !box.checked; paint(video.currentTime); } });
addEventListener("resize", () => paint(video.currentTime));

// --- sound moved against the picture: the same sound from a second element, ahead or behind

let sound = null;
let nudge = 0;
function follow() {
  if (!sound) return;
  const wanted = video.currentTime - nudge / 1000;
  if (Math.abs(sound.currentTime - wanted) > 0.015) sound.currentTime = Math.max(0, wanted);
  if (video.paused) sound.pause();
  else if (sound.paused) sound.play();
}
find("nudge").addEventListener("input", (event) => {
  nudge = Number(event.target.value);
  find("nudge-said").textContent = nudge ? `${Math.abs(nudge)} ms ${nudge > 0 ? "later" : "earlier"}` : "as it is";
  if (nudge && !sound) {
    sound = new Audio(`/media/${id}.flac${form()}`);
    sound.playbackRate = video.playbackRate;
  }
  video.muted = nudge !== 0;
  if (sound) sound.muted = nudge === 0;
  follow();
});
setInterval(() => !video.paused && nudge && sound && Math.abs(sound.currentTime - (video.currentTime - nudge / 1000)) > 0.06 && follow(), 250);

// --- find in what is said

find("find").addEventListener("input", (event) => {
  const wanted = event.target.value.trim().toLowerCase();
  const hits = spoken.filter((word) => {
    const isHit = wanted !== "" && word.textContent.toLowerCase().includes(wanted);
    word.classList.toggle("hit", isHit);
    return isHit;
  });
  if (hits.length) seek(Number(hits[0].dataset.at));
});

// --- marks

for (const button of document.querySelectorAll("[data-mark]")) {
  button.addEventListener("click", async () => {
    if (!(await mark(id, button.dataset.mark, find("note").value))) return;
    for (const other of document.querySelectorAll("[data-mark]")) other.setAttribute("aria-pressed", String(other === button));
  });
  onKey(button.dataset.mark[0], () => button.click());
}

if ("requestVideoFrameCallback" in HTMLVideoElement.prototype) video.requestVideoFrameCallback(onFrame);
else setInterval(() => !video.paused && paint(video.currentTime), 40);
paint(0);
load();
