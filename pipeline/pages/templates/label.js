"use strict";
const token = document.querySelector('meta[name="token"]').content;
const at = (id) => document.getElementById(id);
const TABS = [
  ["label", "To label", "Pictures that teach the head most. Some are drawn at random: they rate it, and no guess is shown with them."],
  ["confirm", "Confirm", "Pictures that look like the class that is chosen. Deselect the wrong ones, then press Enter."],
  ["wrong", "Confidently wrong", "Labels that a head contradicts which was fitted without them."],
  ["errors", "Label errors", "Labels that are likely wrong, by confident learning."],
  ["duplicates", "Duplicates", "Different files of one picture; pairs across splits come first."],
  ["outliers", "Outliers", "Pictures that are like no others."],
  ["class", "One class", "All of the class that is chosen, the least alike first."],
  ["like", "Alike", "Pictures that are like the one that was chosen with L."],
];
const GRID = 20, AHEAD = 8;
const desk = { tab: "label", name: "", like: "", pictures: [], focus: 0, selected: new Set(), passed: new Set(), more: false, undoable: false, left: 0, labelled: 0, lost: false, drawn: "", classes: [], busy: false, loading: false, serial: 0, options: new Map(), ahead: new Map() };

async function ask(path, body) {
  const headers = { "X-Token": token };
  const options = body === undefined ? { headers } : { method: "POST", headers: { ...headers, "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const response = await fetch(path, options);
  const value = await response.json().catch(() => ({ error: `The server answers ${response.status}` }));
  if (!response.ok) throw new Error(value.error);
  return value;
}
function element(tag, text = "", attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}
const address = (picture, side) => `picture/${picture.key}?side=${side}&token=${encodeURIComponent(token)}`;
const say = (text) => { // the same words twice are said twice
  at("said").textContent = "";
  requestAnimationFrame(() => { at("said").textContent = text; });
};
const percent = (share) => `${(100 * share).toFixed(1)} %`;
const isGrid = () => desk.tab === "confirm";
const isOfClass = () => ["confirm", "class"].includes(desk.tab);
const isQueue = () => desk.tab === "label" || isGrid(); // what is answered goes; elsewhere it stays, and more follow

// What is shown

async function load(fresh) {
  const serial = fresh ? ++desk.serial : desk.serial;
  if (fresh) Object.assign(desk, { pictures: [], focus: 0, selected: new Set() });
  desk.loading = true;
  const asked = { tab: desk.tab, n: GRID, name: desk.name, key: desk.like, skip: [...desk.pictures.map((one) => one.key), ...desk.passed] };
  try {
    const { pictures } = await ask("show", asked);
    if (serial !== desk.serial) return;
    const known = new Set(desk.pictures.map((one) => one.key));
    desk.pictures.push(...pictures.filter((one) => !known.has(one.key)));
    desk.more = !isQueue() && pictures.length === GRID;
    if (fresh && isGrid()) desk.selected = new Set(desk.pictures.map((one) => one.key));
    trouble("");
  } catch (error) { trouble(error.message); } finally { desk.loading = false; }
  draw();
}
function draw() {
  const shown = isQueue() ? desk.pictures.slice(0, GRID) : desk.pictures;
  desk.focus = Math.max(0, Math.min(desk.focus, shown.length - 1));
  const options = new Map(desk.options);
  desk.options = new Map(shown.map((picture, number) => [picture.key, option(picture, number, options.get(picture.key))]));
  at("grid").replaceChildren(...desk.options.values());
  for (const one of shown.slice(desk.focus, desk.focus + AHEAD)) ahead(one);
  drawLarge();
  at("more").hidden = !desk.more;
  at("empty").hidden = shown.length > 0;
  const next = desk.left ? "The next pictures are being chosen." : "All pictures have a label.";
  at("empty").textContent = desk.tab === "label" ? next : "There is nothing here.";
  if (document.activeElement === document.body || at("grid").contains(document.activeElement)) focusOn(desk.focus);
}
function ahead(picture) {
  if (desk.ahead.has(picture.key)) return;
  const image = element("img", "", { src: address(picture, 640), alt: picture.path });
  image.decode().catch(() => {});
  desk.ahead.set(picture.key, image);
  if (desk.ahead.size > 4 * AHEAD) desk.ahead.delete(desk.ahead.keys().next().value);
}
function option(picture, number, before) {
  const chosen = desk.selected.has(picture.key);
  const made = before ?? element("div", "", { role: "option", "data-key": picture.key });
  made.setAttribute("aria-selected", chosen);
  made.tabIndex = number === desk.focus ? 0 : -1;
  made.classList.toggle("out", isGrid() && !chosen);
  const text = [picture.label, picture.predicted && picture.predicted !== picture.label ? `looks like ${picture.predicted}` : "", picture.why].filter(Boolean).join("; ");
  made.setAttribute("aria-label", `${picture.path}${text ? `: ${text}` : ""}`);
  const image = before?.firstChild ?? element("img", "", { src: address(picture, 160), alt: "", width: 160, height: 160 });
  made.replaceChildren(image, picture.label ? element("span", picture.label) : element("small", picture.predicted && `${picture.predicted}?`));
  if (picture.why) made.append(document.createElement("br"), element("small", picture.why));
  made.onclick = () => {
    desk.focus = number;
    if (isGrid()) toggle(picture.key);
    draw();
    focusOn(number);
  };
  return made;
}
function drawLarge() {
  drawActions();
  const picture = isGrid() ? undefined : desk.pictures[desk.focus];
  if (!picture) return at("large").replaceChildren();
  const facts = element("div");
  facts.append(element("p", picture.label ? `Labelled ${picture.label}` : "No label yet"));
  if (picture.predicted) facts.append(element("p", `Looks like ${picture.predicted} (${percent(picture.probability)})`));
  if (picture.why) facts.append(element("p", picture.why, { class: "note" }));
  facts.append(element("p", picture.path, { class: "note" }));
  ahead(picture);
  at("large").replaceChildren(desk.ahead.get(picture.key), facts);
}
function drawActions() { // what keys do, for hands that have none
  const picture = desk.pictures[desk.focus], n = desk.selected.size;
  const put = (button, text) => {
    button.hidden = !text;
    button.lastChild.textContent = text;
  };
  const guess = picture?.predicted && picture.predicted !== picture.label ? `Take ${picture.predicted}` : "";
  put(actions.Enter, isGrid() ? n && `Confirm ${n} as ${desk.name}` : guess);
  put(actions.Space, picture && (desk.selected.has(picture.key) ? "Deselect" : "Select"));
  put(actions.L, picture && "Alike");
  put(actions.U, desk.undoable && "Undo");
  at("selected").textContent = n && !isGrid() ? `${n} selected: a class is given to all of them` : "";
}
function select() {
  const picture = desk.pictures[desk.focus];
  if (!picture) return;
  toggle(picture.key);
  draw();
  focusOn(desk.focus);
}
function alike() {
  desk.like = desk.pictures[desk.focus].key;
  return open("like");
}
function focusOn(number) {
  desk.focus = number;
  const options = [...at("grid").children];
  options.forEach((one, place) => { one.tabIndex = place === number ? 0 : -1; });
  options[number]?.focus({ preventScroll: !isGrid() });
  drawLarge();
  if (desk.more && !desk.loading && number > options.length - AHEAD) load(false);
}
function toggle(key) {
  if (!desk.selected.delete(key)) desk.selected.add(key);
}
function drawTabs() {
  at("tabs").replaceChildren(...TABS.map(([tab, title]) => {
    const button = element("button", title, { type: "button", "aria-pressed": tab === desk.tab });
    button.addEventListener("click", () => open(tab));
    return button;
  }));
  at("hint").textContent = TABS.find(([tab]) => tab === desk.tab)[2];
  at("which").hidden = !isOfClass();
  at("one").value = desk.name;
}
function open(tab) {
  desk.tab = tab;
  desk.passed.clear();
  if (isOfClass() && !desk.name) desk.name = desk.classes[0]?.name ?? "";
  drawTabs();
  if (isOfClass() && !desk.name) { desk.pictures = []; return draw(); }
  return load(true);
}

// Answers

async function answer(keys, label) {
  if (desk.busy || !keys.length) return;
  desk.busy = true;
  const confirmed = isGrid() && label === desk.name;
  const one = keys.length === 1 ? desk.pictures.find((picture) => picture.key === keys[0]) : undefined;
  const guess = one?.predicted ? { seen: one.predicted, probability: one.probability } : {};
  try {
    await ask("answer", { answers: keys.map((key) => [key, label]), shown: { tab: desk.tab, ...guess } });
    const done = new Set(keys);
    if (confirmed) for (const { key } of desk.pictures) if (!done.has(key)) desk.passed.add(key); // clicked away
    if (isQueue()) desk.pictures = desk.pictures.filter((picture) => !done.has(picture.key));
    else {
      for (const picture of desk.pictures) if (done.has(picture.key)) picture.label = label;
      desk.focus += 1;
    }
    for (const key of keys) desk.selected.delete(key);
    trouble("");
    say(`${keys.length === 1 ? "Picture" : `${keys.length} pictures`}: ${label}`);
    draw();
    focusOn(desk.focus);
  } catch (error) { return trouble(error.message); } finally { desk.busy = false; }
  if (confirmed || (isGrid() && !desk.pictures.length)) load(true);
  else if (isQueue() && desk.pictures.length < GRID / 2 && !desk.loading) load(false);
  refresh();
}
function give(label) {
  const picture = desk.pictures[desk.focus];
  const chosen = !isGrid() && desk.selected.size; // in a grid all are, which is no answer
  return answer(chosen ? [...desk.selected] : picture ? [picture.key] : [], label);
}
function accept() {
  if (isGrid()) return answer([...desk.selected], desk.name);
  const picture = desk.pictures[desk.focus];
  if (picture?.predicted) return answer([picture.key], picture.predicted);
}
async function undo() {
  try {
    const { keys } = await ask("undo", {});
    say(keys.length ? "The last answer is taken back" : "There is nothing to take back");
    await load(true);
  } catch (error) { trouble(error.message); }
  refresh();
}
const beginning = (text) => desk.classes.filter((one) => one.name.toLowerCase().startsWith(text.toLowerCase())).map((one) => one.name);
async function take(text, isNew) {
  const wanted = text.trim();
  if (!wanted) return;
  const known = desk.classes.find((one) => one.name === wanted) ?? desk.classes.find((one) => one.name.toLowerCase() === wanted.toLowerCase());
  if (known && !isNew) return choose(known.name);
  const near = desk.labelled && !isNew ? beginning(wanted) : []; // classes are named first, and then found
  if (near.length === 1) return choose(near[0]);
  if (near.length) return trouble(`${near.length} classes begin with ${wanted}: type on, or add it as a new one`);
  try {
    await ask("class", { name: wanted });
    trouble("");
    await refresh();
    say(`Class ${wanted} added`);
  } catch (error) { trouble(error.message); }
}
function choose(name) {
  if (!isGrid()) return give(name);
  desk.name = name;
  return open("confirm");
}

// The whole

function trouble(text) { at("trouble").textContent = text; }
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
  if (!state.ready) {
    at("doing").textContent = state.total ? `${state.doing}: ${state.done.toLocaleString()} of ${state.total.toLocaleString()}` : state.doing;
    at("done").max = state.total || 1;
    if (state.total) at("done").value = state.done; else at("done").removeAttribute("value");
    return state;
  }
  if (desk.undoable !== state.can_undo) { desk.undoable = state.can_undo; drawActions(); }
  desk.labelled = state.labelled;
  desk.left = state.n - state.labelled - state.dropped;
  if (desk.tab === "label" && desk.left && !desk.pictures.length && !desk.loading && desk.serial) load(true);
  at("name").textContent = state.name;
  const dropped = state.dropped ? `, ${state.dropped.toLocaleString()} left out` : "";
  at("count").textContent = `${state.labelled.toLocaleString()} of ${state.n.toLocaleString()} labelled${dropped}`;
  drawAccuracy(state);
  if (JSON.stringify(desk.classes) !== JSON.stringify(state.classes)) {
    desk.classes = state.classes;
    drawClasses();
  }
  return state;
}
function drawAccuracy({ rating, history, gain }) {
  if (!rating) { at("accuracy").textContent = "Its accuracy is told once a few pictures that were drawn at random have labels."; return; }
  const text = `${percent(rating.accuracy)} right (${(100 * rating.low).toFixed(0)} to ${(100 * rating.high).toFixed(0)} %) on ${rating.n.toLocaleString()} pictures drawn at random`;
  const more = gain ? `; about ${gain.toLocaleString()} more labels would gain a point` : "";
  at("accuracy").replaceChildren(element("span", text + more + " "));
  if (history.length > 1) at("accuracy").append(growth(history));
}
function growth(history) {
  const make = (tag, attributes) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  };
  const first = history[0].n_labels, span = Math.max(1, history.at(-1).n_labels - first);
  const x = (one) => (100 * (one.n_labels - first)) / span, y = (share) => 40 - 40 * share;
  const svg = make("svg", { class: "growth", viewBox: "0 0 100 40", preserveAspectRatio: "none", role: "img", "aria-label": `Accuracy from ${percent(history[0].accuracy)} at ${first} labels to ${percent(history.at(-1).accuracy)} at ${history.at(-1).n_labels}` });
  const around = [...history.map((one) => `${x(one)},${y(one.high)}`), ...[...history].reverse().map((one) => `${x(one)},${y(one.low)}`)];
  svg.append(make("polygon", { points: around.join(" ") }), make("path", { d: history.map((one, place) => `${place ? "L" : "M"}${x(one)},${y(one.accuracy)}`).join(""), "vector-effect": "non-scaling-stroke" }));
  return svg;
}
function drawClasses() { // buttons stay as they are under a finger, and only their numbers change
  const names = desk.classes.map((one) => one.name);
  if (desk.drawn !== JSON.stringify(names)) {
    const buttons = names.map((name, number) => {
      const button = element("button", "", { type: "button" });
      if (number < 9) button.append(element("kbd", String(number + 1)));
      button.append(element("span", name), element("small"));
      button.addEventListener("click", () => choose(name));
      return button;
    });
    const out = element("button", "", { type: "button" });
    out.append(element("kbd", "0"), element("span", "leave out"));
    out.addEventListener("click", () => give("drop"));
    at("classes").replaceChildren(...buttons, names.length ? out : element("p", "Name the classes below, one after the other.", { class: "note" }));
    at("one").replaceChildren(...names.map((name) => element("option", name)));
    at("one").value = desk.name;
    desk.drawn = JSON.stringify(names);
  }
  desk.classes.forEach(({ n }, number) => { at("classes").children[number].lastChild.textContent = n.toLocaleString(); });
}
function columns() {
  const options = [...at("grid").children];
  const next = options.findIndex((one) => one.offsetTop > options[0].offsetTop);
  return next < 0 ? options.length : next;
}
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || at("desk").hidden) return;
  if (event.target === at("find")) {
    if (event.key === "/" && !at("find").value) event.preventDefault();
    if (event.key === "Enter" && event.shiftKey) { event.preventDefault(); find(true); }
    if (event.key === "Escape") { at("find").value = ""; focusOn(desk.focus); }
    return;
  }
  if (event.target.tagName === "SELECT") return;
  const onButton = event.target.tagName === "BUTTON" || event.target.tagName === "SUMMARY";
  const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns(), ArrowDown: columns() };
  const n = at("grid").children.length;
  if (event.repeat && !(event.key in moves)) return event.preventDefault(); // a key that is held is one answer
  let done = true;
  if (event.key in moves && n) focusOn(Math.max(0, Math.min(n - 1, desk.focus + moves[event.key])));
  else if (event.key === " " && !onButton) select();
  else if (event.key === "Enter" && !onButton) accept();
  else if (/^[1-9]$/.test(event.key) && desk.classes[event.key - 1]) choose(desk.classes[event.key - 1].name);
  else if (event.key === "0") give("drop");
  else if (event.key.toLowerCase() === "u") undo();
  else if (event.key.toLowerCase() === "l" && desk.pictures[desk.focus]) alike();
  else if (event.key === "/") at("find").focus();
  else done = false;
  if (done) event.preventDefault();
});
at("more").addEventListener("click", () => load(false));
function find(isNew) {
  const text = at("find").value;
  at("find").value = at("found").textContent = "";
  take(text, isNew).then(() => { if (at("grid").children.length) focusOn(desk.focus); });
}
at("find-form").addEventListener("submit", (event) => { event.preventDefault(); find(false); });
at("add").addEventListener("click", () => find(true));
at("one").addEventListener("change", () => { desk.name = at("one").value; open(desk.tab); });
const actions = Object.fromEntries([["Enter", accept], ["Space", select], ["L", alike], ["U", undo]].map(([key, act]) => {
  const button = element("button", "", { type: "button", hidden: "" });
  button.append(element("kbd", key), element("span"));
  button.addEventListener("click", act);
  at("actions").append(button);
  return [key, button];
}));
at("actions").append(at("selected"));
at("find").addEventListener("input", () => {
  const text = at("find").value.trim(), near = desk.labelled ? beginning(text) : [];
  const what = near.length === 1 ? `Enter takes ${near[0]}` : near.length ? near.slice(0, 5).join(", ") : "Enter adds it";
  at("found").textContent = text && what;
});
async function start() {
  for (;;) {
    const state = await refresh();
    if (state?.ready) {
      await open(state.labelled === state.n ? "errors" : "label");
      if (state.classes.length) focusOn(0); else at("find").focus();
      break;
    }
    await new Promise((resolve) => setTimeout(resolve, 300));
  }
  setInterval(refresh, 2000);
}
start();
