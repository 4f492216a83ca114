// What is asked of the server and answered by a person. What is drawn is in label_view.js.

const token = document.querySelector('meta[name="token"]').content;
const at = (id) => document.getElementById(id);
if (!history.state) history.replaceState(Math.random().toString(36).slice(2), ""); // outlives a reload
const me = history.state; // each window takes back its own answers
const TABS = [
  ["label", "To label", "The most informative pictures first. Some are drawn at random: they rate the head, and no guess is shown with them."],
  ["confirm", "Confirm", "Pictures that look like the class that is chosen. Deselect the wrong ones, then press Enter."],
  ["wrong", "Confidently wrong", "Labels contradicted by a head that was fitted without them."],
  ["errors", "Label errors", "Labels that are likely wrong, by confident learning."],
  ["duplicates", "Duplicates", "Different files of one picture; pairs across splits come first."],
  ["outliers", "Outliers", "Pictures that are like no others. Pictures drawn at random are left out until they have a label."],
  ["class", "One class", "All pictures of the chosen class, the least typical first."],
  ["like", "Alike", "Pictures that are like the one that was chosen with L, which comes first. Pictures drawn at random are left out until they have a label."],
];
const GRID = 20, AHEAD = 8;
const desk = { tab: "label", name: "", like: "", pictures: [], focus: 0, selected: new Set(), passed: new Set(), broken: new Set(), more: false, undoable: false, left: 0, doing: "", lost: false, told: "", drawn: "", classes: [], loading: false, serial: 0, fit: 0, options: new Map(), ahead: new Map() };

async function ask(path, body) {
  const headers = { "X-Token": token, "X-Window": me };
  const options = body === undefined ? { headers } : { method: "POST", headers: { ...headers, "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const response = await fetch(path, options);
  const value = await response.json().catch(() => ({ error: `The server answers ${response.status}` }));
  if (!response.ok) throw Object.assign(new Error(value.error), { labels: value.labels });
  return value;
}
let last = Promise.resolve(), troubles = 0;
function inTurn(act) { // what keys and clicks ask for, one after the other; after trouble, what waits is let go, as it was meant for a later picture
  const before = troubles;
  last = last.then(() => (before === troubles ? act() : undefined)).catch((error) => {
    troubles += 1;
    trouble(error.message);
  });
  return last;
}
const isGrid = () => desk.tab === "confirm";
const isOfClass = () => ["confirm", "class"].includes(desk.tab);
const isQueue = () => desk.tab === "label" || isGrid(); // what is answered goes; elsewhere it stays, and more follow

// What is shown

async function load(fresh, kept = Infinity) { // so many of those that are held stay
  const serial = fresh ? ++desk.serial : desk.serial;
  if (fresh) Object.assign(desk, { pictures: [], focus: 0, selected: new Set() });
  desk.loading = true;
  const skip = desk.pictures.slice(0, kept).map((one) => one.key);
  try {
    const { pictures } = await ask("show", { tab: desk.tab, n: GRID, name: desk.name, key: desk.like, skip: [...skip, ...desk.passed] });
    if (serial !== desk.serial) return;
    if (!desk.selected.size) desk.pictures = desk.pictures.slice(0, Math.max(kept, desk.focus + 1));
    const known = new Set(desk.pictures.map((one) => one.key));
    desk.pictures.push(...pictures.filter((one) => !known.has(one.key)));
    desk.more = !isQueue() && pictures.length === GRID;
    if (fresh && isGrid()) for (const one of pictures) desk.selected.add(one.key);
    if (isGrid()) keepInSight();
  } catch (error) { trouble(error.message); } finally { if (serial === desk.serial) desk.loading = false; }
  draw();
  if (desk.tab === "label" && !desk.pictures.length && desk.left) setTimeout(refresh, 500); // they are being chosen
}
function renew() { // a newer head knows better what teaches most; what is before the eyes, or selected, stays
  const can = desk.tab === "label" && desk.pictures.length && !desk.loading && !desk.selected.size;
  if (can) load(false, desk.focus + AHEAD);
  return can;
}
function keepInSight() { // nothing is confirmed that can't be seen
  desk.pictures = desk.pictures.slice(0, GRID);
  desk.selected = new Set(desk.pictures.map((one) => one.key).filter((key) => desk.selected.has(key) && !desk.broken.has(key)));
}
async function open(tab) {
  desk.tab = tab;
  desk.passed.clear();
  trouble("");
  if (isOfClass() && !desk.name) desk.name = desk.classes[0]?.name ?? "";
  drawTabs();
  if (isOfClass() && !desk.name) { desk.pictures = []; return draw(); }
  await load(true);
  focusOn(desk.focus);
}
function turnTo(step) {
  const names = TABS.map(([tab]) => tab).filter((tab) => tab !== "like" || desk.like);
  open(names.at((names.indexOf(desk.tab) + step) % names.length));
}
function alike() {
  if (!desk.pictures[desk.focus]) return;
  desk.like = desk.pictures[desk.focus].key;
  open("like");
}
function toggle(key) {
  if (!desk.selected.delete(key)) desk.selected.add(key);
}
function select() {
  const picture = desk.pictures[desk.focus];
  if (!picture) return;
  toggle(picture.key);
  draw();
  focusOn(desk.focus);
}
function move(step) {
  const n = at("grid").children.length;
  if (n) focusOn(Math.max(0, Math.min(n - 1, desk.focus + step)));
}

// Answers

async function answer(keys, label) {
  if (!keys.length) return;
  const done = new Set(keys), confirmed = isGrid() && label === desk.name;
  const pictures = desk.pictures.filter((one) => done.has(one.key));
  const guess = keys.length === 1 && pictures[0]?.predicted ? { seen: pictures[0].predicted, probability: pictures[0].probability } : {};
  const saw = Object.fromEntries(pictures.map((one) => [one.key, one.label]));
  await change("answer", { answers: keys.map((key) => [key, label]), saw, shown: { tab: desk.tab, ...guess } });
  if (confirmed) for (const { key } of desk.pictures) if (!done.has(key)) desk.passed.add(key); // clicked away
  if (isQueue()) desk.pictures = desk.pictures.filter((one) => !done.has(one.key));
  else {
    for (const one of pictures) one.label = label;
    desk.focus += 1;
  }
  for (const key of keys) desk.selected.delete(key);
  trouble("");
  say(`${keys.length === 1 ? "Picture" : `${keys.length} pictures`}: ${inWords(label)}`);
  draw();
  focusOn(desk.focus);
  if (confirmed || (isGrid() && !desk.pictures.length)) load(true);
  else if (isQueue() && desk.pictures.length < GRID / 2 && !desk.loading) load(false);
  refresh();
}
async function change(path, body) {
  try { return await ask(path, body); } catch (error) {
    if (error.labels) await overtaken(error.labels);
    throw error;
  }
}
async function overtaken(labels) { // what another window has answered is shown, and nothing is laid over it unseen
  for (const one of desk.pictures) one.label = labels[one.key] ?? one.label;
  for (const key of Object.keys(labels)) desk.selected.delete(key);
  if (isQueue()) desk.pictures = desk.pictures.filter((one) => !labels[one.key]);
  draw();
  if (desk.tab === "label") await load(true); // as others of them may have been answered too
}
function give(label) {
  const picture = desk.pictures[desk.focus];
  const chosen = !isGrid() && desk.selected.size; // in a grid all are, which is no answer
  return answer(chosen ? [...desk.selected] : picture ? [picture.key] : [], label);
}
function accept() {
  if (isGrid()) {
    if (![...desk.selected].every(canBeSeen)) throw new Error("A picture that is selected can't be seen; wait until it is there, or deselect it");
    return answer([...desk.selected], desk.name);
  }
  const picture = desk.pictures[desk.focus];
  if (picture?.predicted) return answer([picture.key], picture.predicted);
}
async function undo() {
  const { pictures } = await change("undo", {});
  trouble("");
  say(pictures.length ? "The last answer is taken back" : "There is nothing to take back");
  if (pictures.length) bring(pictures);
  refresh();
}
function bring(pictures) { // back before the eyes: where they are, or in front of all others
  const held = new Map(desk.pictures.map((one) => [one.key, one]));
  const back = pictures.map((one) => Object.assign(held.get(one.key) ?? one, { label: one.label }));
  const rest = desk.pictures.filter((one) => !back.includes(one));
  if (!pictures.every((one) => held.has(one.key))) desk.pictures = [...back, ...rest];
  if (isGrid()) {
    for (const one of back) if (one.predicted === desk.name) desk.selected.add(one.key);
    keepInSight();
  }
  desk.focus = desk.pictures.indexOf(back[0]);
  draw();
  focusOn(desk.focus);
}
function choose(name) {
  if (!isGrid()) return give(name);
  desk.name = name;
  open("confirm");
}
async function add(name) {
  try { await ask("class", { name }); } catch (error) {
    at("find").value ||= name;
    throw error;
  }
  trouble("");
  await refresh();
  say(`Class ${name} added`);
}

// Classes by their names

const beginning = (text) => desk.classes.map((one) => one.name).filter((name) => name.toLowerCase().startsWith(text.toLowerCase()));
function named(text) {
  const near = beginning(text);
  return near.find((name) => name === text) ?? near.find((name) => name.length === text.length) ?? (near.length === 1 ? near[0] : undefined);
}
function find(isNew) {
  const text = at("find").value.trim(), near = beginning(text), name = isNew ? undefined : named(text);
  if (!text) return;
  if (near.length && !name && !isNew) return trouble(`${near.length} classes begin with ${text}: type on, or add it as a new one`);
  leave();
  inTurn(() => (name ? choose(name) : add(text)));
}
function leave() {
  at("find").value = at("found").textContent = "";
  at("find").blur();
  trouble("");
  focusOn(desk.focus);
}
at("find").addEventListener("input", () => {
  const text = at("find").value.trim(), near = beginning(text), name = named(text);
  const takes = name && `Enter takes ${name}${name === text ? "" : `; Shift+Enter adds ${text}`}`;
  at("found").textContent = text && (takes || near.slice(0, 5).join(", ") || "Enter adds it");
  trouble("");
});

// The whole

async function refresh() {
  let state;
  try { state = await ask("state"); } catch (error) {
    desk.lost = true;
    return trouble(`tlpipe label has ended, or can't be reached: ${error.message}`);
  }
  if (desk.lost) trouble("");
  desk.lost = false;
  at("preparing").hidden = state.ready;
  at("desk").hidden = !state.ready;
  if (state.ready) drawState(state); else drawProgress(state);
  return state;
}
const ONCE = /^([0-9 ult]|Enter)$/i; // a key that is held is one answer
const KEYS = { " ": select, Enter: accept, 0: () => give("drop"), u: undo, l: alike, t: () => turnTo(1), T: () => turnTo(-1) };
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || at("desk").hidden) return;
  if (event.target === at("find")) {
    if (event.key === "/" && !at("find").value) event.preventDefault();
    if (event.key === "Enter" && event.shiftKey) { event.preventDefault(); find(true); }
    if (event.key === "Escape") leave();
    return;
  }
  if (event.target === at("one")) {
    if (event.key === "Enter") { event.preventDefault(); at("one").blur(); focusOn(desk.focus); }
    return;
  }
  if (event.repeat && ONCE.test(event.key)) return event.preventDefault();
  const onButton = ["BUTTON", "SUMMARY"].includes(event.target.tagName) && [" ", "Enter"].includes(event.key);
  const moves = { ArrowLeft: () => -1, ArrowRight: () => 1, ArrowUp: () => -columns(), ArrowDown: () => columns() };
  const step = moves[event.key], act = KEYS[event.key] ?? KEYS[event.key.toLowerCase()], number = Number(event.key) - 1;
  if (step) inTurn(() => move(step()));
  else if (act && !onButton) inTurn(act);
  else if (/^[1-9]$/.test(event.key)) inTurn(() => desk.classes[number] && choose(desk.classes[number].name));
  else if (event.key === "/") at("find").focus();
  else return;
  event.preventDefault();
});
at("more").addEventListener("click", () => load(false));
at("find-form").addEventListener("submit", (event) => { event.preventDefault(); find(false); });
at("add").addEventListener("click", () => find(true));
at("one").addEventListener("change", async () => { // in its turn, so that no picture is confirmed as what it isn't shown for
  const name = at("one").value;
  await inTurn(() => {
    desk.name = name;
    open(desk.tab);
  });
  at("one").value = desk.name; // that of before, if it was let go
});
const actions = Object.fromEntries([["Enter", accept], ["Space", select], ["L", alike], ["U", undo]].map(([key, act]) => {
  const button = element("button", "", { type: "button", hidden: "" });
  button.append(element("kbd", key), element("span"));
  button.addEventListener("click", () => inTurn(act));
  at("actions").append(button);
  return [key, button];
}));
at("actions").append(at("selected"));
const narrow = matchMedia("(max-width: 40rem)");
narrow.addEventListener("change", arrange);
async function start() {
  arrange();
  for (;;) {
    const state = await refresh();
    if (state?.ready) {
      await open(state.labelled + state.dropped === state.n ? "errors" : "label");
      if (!state.classes.length) at("find").focus();
      break;
    }
    await new Promise((resolve) => setTimeout(resolve, 300));
  }
  setInterval(refresh, 2000);
}
start();
