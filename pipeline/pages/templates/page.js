"use strict";
// Tables: a heading is a button that sorts by its column.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const value = (row, column) => {
    const cell = row.cells[column], given = cell.dataset.value ?? cell.textContent.trim();
    const number = Number(given);
    return given !== "" && Number.isFinite(number) ? number : given;
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      // Figures are wanted largest first, names from A.
      const first = head.classList.contains("figure") ? "descending" : "ascending";
      const other = first === "descending" ? "ascending" : "descending";
      const order = head.getAttribute("aria-sort") === first ? other : first;
      heads.forEach((one) => one.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const compare = (a, b) => typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
      body.append(...[...body.rows].sort((a, b) => sign * compare(value(a, column), value(b, column))));
    });
  });
}
// A search field leaves the rows that have all its words.
for (const field of document.querySelectorAll("input[data-filter]")) {
  const rows = [...document.getElementById(field.dataset.filter).querySelectorAll("tbody tr")];
  const count = document.querySelector(`output[data-count="${field.dataset.filter}"]`);
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
    count.textContent = words.length ? `${rows.filter((row) => !row.hidden).length} of ${rows.length}` : "";
  });
}
// The gallery: one of two views, or the images of one cell of the confusion matrix.
const gallery = document.getElementById("gallery");
const cells = [...document.querySelectorAll("#confusions button")];
const views = [...document.querySelectorAll("button[data-view]")];
if (gallery) {
  const figures = [...gallery.children], count = document.querySelector('output[data-count="gallery"]');
  const show = (chosen, wanted, text) => {
    for (const button of [...cells, ...views]) button.setAttribute("aria-pressed", String(button === chosen));
    for (const figure of figures) figure.hidden = !wanted(figure);
    // The surest come first, but where the least certain are asked for.
    gallery.append(...(chosen.dataset.view === "uncertain" ? [...figures].reverse() : figures));
    const n = figures.filter((figure) => !figure.hidden).length;
    count.textContent = text(n);
  };
  for (const button of views) {
    button.addEventListener("click", () => show(button, (figure) => button.dataset.view in figure.dataset, (n) => `${n} images`));
  }
  for (const button of cells) {
    const same = (figure) => figure.dataset.true === button.dataset.true && figure.dataset.predicted === button.dataset.predicted;
    button.addEventListener("click", () => {
      if (button.getAttribute("aria-pressed") === "true") return views[0].click();
      show(button, same, (n) => `${n} shown: ${button.getAttribute("aria-label")}`);
    });
  }
  views[0].click();
}
// Arrow keys move between the cells; Tab enters and leaves the matrix as a whole.
const table = document.getElementById("confusions");
if (table && cells.length) {
  cells.forEach((button, number) => { button.tabIndex = number ? -1 : 0; });
  const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
  table.addEventListener("keydown", (event) => {
    const step = steps[event.key], cell = event.target.closest("td");
    if (!step || !cell) return;
    event.preventDefault();
    const rows = [...table.tBodies[0].rows];
    let row = cell.parentNode.sectionRowIndex + step[0], column = cell.cellIndex + step[1];
    for (; rows[row]?.cells[column]; row += step[0], column += step[1]) {
      const next = rows[row].cells[column].querySelector("button");
      if (next) {
        event.target.tabIndex = -1;
        next.tabIndex = 0;
        return next.focus();
      }
    }
  });
}
// Vega listens to the pointer alone: keys do there what a pointer would do.
function byKeyboard(chart) {
  const point = (mark, ...types) => {
    const { left, top, width, height } = mark.getBoundingClientRect();
    for (const type of types) {
      mark.dispatchEvent(new PointerEvent(type, { bubbles: true, clientX: left + width / 2, clientY: top + height / 2 }));
    }
  };
  for (const symbol of chart.querySelectorAll(".role-legend-symbol path")) {
    symbol.setAttribute("tabindex", "0");
    symbol.setAttribute("role", "button");
    symbol.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      point(symbol, "pointerdown", "pointerup", "click");
    });
  }
  const marks = [...chart.querySelectorAll(".mark-symbol.role-mark path")];
  marks.forEach((mark, number) => {
    mark.setAttribute("tabindex", number ? "-1" : "0");
    mark.addEventListener("focus", () => point(mark, "pointerover", "pointermove"));
    mark.addEventListener("blur", () => point(mark, "pointerout"));
    mark.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      marks[(number + step + marks.length) % marks.length].focus();
    });
  });
}
// Charts, drawn when they come near, as SVG, so that the page's style gives them their colours.
const draw = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    draw.unobserve(target);
    const spec = JSON.parse(target.querySelector("script").textContent);
    target.replaceChildren();
    vegaEmbed(target, spec, { renderer: "svg", actions: false }).then(() => spec.params && byKeyboard(target)).catch((error) => { target.textContent = `This chart can't be drawn: ${error.message}`; });
  }
}, { rootMargin: "400px" });
document.querySelectorAll(".chart").forEach((chart) => draw.observe(chart));
// The gallery may show which parts support the predicted class.
document.getElementById("seen")?.addEventListener("click", ({ currentTarget }) => {
  currentTarget.setAttribute("aria-pressed", String(currentTarget.getAttribute("aria-pressed") !== "true"));
  for (const image of document.querySelectorAll("img[data-seen]")) [image.src, image.dataset.seen] = [image.dataset.seen, image.src];
});
// Corrections: a picture is chosen, then its class, with the keys of tlpipe label; they are saved as a table.
const desk = document.getElementById("corrections");
if (desk) {
  const figures = [...document.querySelectorAll("figure[data-path]")], given = new Map(), done = [];
  const earlier = JSON.parse(desk.dataset.given); // of a file that is replaced by what is saved
  const buttons = [...desk.querySelectorAll("button[data-class]")], save = document.getElementById("save"), said = desk.querySelector("output");
  const keys = { 0: "drop" };
  buttons.slice(0, -1).slice(0, 9).forEach((button, number) => { keys[number + 1] = button.dataset.class; });
  let chosen = null; // until a picture has the focus
  const show = () => {
    for (const figure of figures) {
      const label = given.get(figure.dataset.path);
      figure.querySelector("output").textContent = label ? ` ${label === "drop" ? "left out" : label}` : "";
    }
    save.disabled = !given.size;
    said.textContent = given.size ? `${given.size} corrected` : "";
  };
  const give = (label) => {
    if (!chosen) said.textContent = "Choose a picture first";
    if (!chosen || !label) return;
    const path = chosen.dataset.path;
    done.push([path, given.get(path)]);
    given.set(path, label);
    show();
    const next = figures[figures.indexOf(chosen) + 1];
    if (next) next.focus();
  };
  const undo = () => {
    const [path, before] = done.pop() ?? [];
    if (!path) return;
    if (before) given.set(path, before); else given.delete(path);
    show();
  };
  for (const figure of figures) {
    figure.addEventListener("focus", () => { chosen = figure; });
    figure.addEventListener("click", () => figure.focus());
  }
  for (const button of buttons) button.addEventListener("click", () => give(button.dataset.class));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "INPUT") return;
    const isOnce = event.key in keys || event.key.toLowerCase() === "u"; // a key that is held is one answer
    if (event.repeat && isOnce) return event.preventDefault();
    if (event.key in keys) give(keys[event.key]);
    else if (event.key.toLowerCase() === "u") undo();
    else if (["ArrowRight", "ArrowLeft"].includes(event.key) && event.target.dataset.path) {
      figures[figures.indexOf(chosen) + (event.key === "ArrowRight" ? 1 : -1)]?.focus();
    } else return;
    event.preventDefault();
  });
  save.addEventListener("click", () => {
    const cell = (text) => `"${text.replaceAll('"', '""')}"`;
    const all = [...earlier, ...[...given].map(([path, label]) => [path, path, label])];
    const keyed = earlier.some(([name, path]) => path && path !== name); // by key, and where that has gone by path
    const rows = all.map(([name, path, label]) => `${(keyed ? [name, path, label] : [name, label]).map(cell).join(",")}\n`);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([keyed ? "key,path,label\n" : "path,label\n", ...rows], { type: "text/csv" }));
    link.download = "labels.csv";
    link.click();
    URL.revokeObjectURL(link.href);
  });
}
