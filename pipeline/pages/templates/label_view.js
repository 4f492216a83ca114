"use strict";
// What is drawn: pictures, what is known of them, and how the labelling goes. What is asked and answered is in label.js.

function element(tag, text = "", attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}
const address = (picture, side) => `picture/${picture.key}?side=${side}&token=${encodeURIComponent(token)}`;
const percent = (share) => `${(100 * share).toFixed(1)} %`;
const inWords = (label) => (label === "drop" ? "left out" : label);
function trouble(text) { at("trouble").textContent = text; }
function say(text) { // the same words twice are said twice
  at("said").textContent = "";
  requestAnimationFrame(() => { at("said").textContent = text; });
}
function arrange() { // on a phone the picture comes first, for eyes and for the Tab key
  const wide = ["classes", "find-form", "tabs", "hint", "which", "trouble", "large", "actions"];
  at("desk").prepend(...(narrow.matches ? ["large", "classes", "actions"] : wide).map(at));
}

// Pictures

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
  const next = desk.left ? "The next pictures are being chosen." : "All pictures have a label, or are left out.";
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
  const why = desk.broken.has(picture.key) ? "can't be shown" : picture.why;
  const text = [inWords(picture.label), picture.predicted && picture.predicted !== picture.label ? `looks like ${picture.predicted}` : "", why].filter(Boolean).join("; ");
  made.setAttribute("aria-label", `${picture.path}${text ? `: ${text}` : ""}`);
  const image = before?.firstChild ?? element("img", "", { src: address(picture, 160), alt: "", width: 160, height: 160 });
  image.onerror = () => {
    desk.broken.add(picture.key);
    desk.selected.delete(picture.key);
    draw();
  };
  made.replaceChildren(image, picture.label ? element("span", inWords(picture.label)) : element("small", picture.predicted && `${picture.predicted}?`));
  if (why) made.append(document.createElement("br"), element("small", why));
  made.onclick = () => inTurn(() => { // what is answered before may take pictures away
    const place = desk.pictures.findIndex((one) => one.key === picture.key);
    if (place < 0) throw new Error("The picture that was clicked is no longer here");
    desk.focus = place;
    if (isGrid()) toggle(picture.key);
    draw();
    focusOn(place);
  });
  return made;
}
const canBeSeen = (key) => desk.options.get(key)?.firstChild.naturalWidth > 0;
function drawLarge() {
  drawActions();
  const picture = isGrid() ? undefined : desk.pictures[desk.focus];
  if (!picture) return at("large").replaceChildren();
  const facts = element("div");
  facts.append(element("p", picture.label === "drop" ? "Left out" : picture.label ? `Labelled ${picture.label}` : "No label yet"));
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
function focusOn(number) { // unless someone is typing
  desk.focus = number;
  const options = [...at("grid").children];
  options.forEach((one, place) => { one.tabIndex = place === number ? 0 : -1; });
  if (!["INPUT", "SELECT"].includes(document.activeElement.tagName)) options[number]?.focus({ preventScroll: !isGrid() });
  drawLarge();
  if (desk.more && !desk.loading && number > options.length - AHEAD) load(false);
}
function columns() {
  const options = [...at("grid").children];
  const next = options.findIndex((one) => one.offsetTop > options[0].offsetTop);
  return next < 0 ? options.length : next;
}
function drawTabs() {
  at("tabs").replaceChildren(...TABS.map(([tab, title]) => {
    const button = element("button", title, { type: "button", "aria-pressed": tab === desk.tab });
    button.addEventListener("click", () => inTurn(() => { if (tab === "like" && !desk.like) alike(); else open(tab); }));
    return button;
  }));
  at("hint").textContent = TABS.find(([tab]) => tab === desk.tab)[2];
  at("which").hidden = !isOfClass();
  at("one").value = desk.name;
}

// The labelling as a whole

function drawProgress({ doing, done, total }) {
  if (desk.doing !== doing) say(doing); // numbers that run would be read out without end
  desk.doing = doing;
  at("doing").textContent = total ? `${doing}: ${done.toLocaleString()} of ${total.toLocaleString()}` : doing;
  at("done").max = total || 1;
  if (total) at("done").value = done; else at("done").removeAttribute("value");
}
function drawState(state) {
  if (desk.undoable !== state.can_undo) { desk.undoable = state.can_undo; drawActions(); }
  const left = state.n - state.labelled - state.dropped;
  if (desk.left !== left) {
    desk.left = left;
    if (!desk.pictures.length) draw();
  }
  if (desk.tab === "label" && desk.left && !desk.pictures.length && !desk.loading && desk.serial) load(true);
  if (desk.fit !== state.fit && renew()) desk.fit = state.fit;
  if (desk.told === JSON.stringify(state)) return; // who reads it would lose their place
  desk.told = JSON.stringify(state);
  at("name").textContent = state.name;
  const dropped = state.dropped ? `, ${state.dropped.toLocaleString()} left out` : "";
  at("count").textContent = `${state.labelled.toLocaleString()} of ${state.n.toLocaleString()} labelled${dropped}`;
  drawAccuracy(state);
  if (JSON.stringify(desk.classes) !== JSON.stringify(state.classes)) {
    desk.classes = state.classes;
    drawClasses();
  }
}
function drawAccuracy({ rating, history, gain }) {
  if (!rating) { at("accuracy").textContent = "The accuracy appears once a few randomly drawn pictures are labelled."; return; }
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
      button.addEventListener("click", () => inTurn(() => choose(name)));
      return button;
    });
    const out = element("button", "", { type: "button" });
    out.append(element("kbd", "0"), element("span", "leave out"));
    out.addEventListener("click", () => inTurn(() => give("drop")));
    at("classes").replaceChildren(...buttons, names.length ? out : element("p", "Name the classes below, one after the other.", { class: "note" }));
    at("one").replaceChildren(...names.map((name) => element("option", name)));
    at("one").value = desk.name;
    desk.drawn = JSON.stringify(names);
  }
  desk.classes.forEach(({ n }, number) => { at("classes").children[number].lastChild.textContent = n.toLocaleString(); });
}
