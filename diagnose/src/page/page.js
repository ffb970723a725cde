// The script does what links and styles cannot: it moves in the map by arrow keys, reads out the cell under
// the pointer, marks the chosen cell, and unpacks heads.
(() => {
  const cells = [...document.querySelectorAll(".grid a")];
  if (!cells.length) return;
  const readout = document.getElementById("readout");
  const first = document.querySelector(".head.first");
  const say = (cell) => (readout.textContent = cell.title.split("\n").join(" · "));
  // This does not use :target, which is set only once the page has loaded.
  const chosen = () => document.getElementById(location.hash.slice(1))?.closest(".head") || first;
  const place = (cell) => [cell.closest("tr").rowIndex, cell.closest("td").cellIndex];
  const at = new Map(cells.map((cell) => [place(cell).join(), cell]));
  const stop = (cell) => {
    // The map is one stop for the tab key. The arrow keys move inside it.
    for (const other of cells) other.tabIndex = other === cell ? 0 : -1;
  };
  const mark = () => {
    for (const cell of cells) {
      if (cell.hash === "#" + chosen().id) {
        cell.setAttribute("aria-current", "true");
        stop(cell);
        say(cell);
      } else cell.removeAttribute("aria-current");
    }
  };
  const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  for (const cell of cells) {
    cell.addEventListener("pointerenter", () => say(cell));
    cell.addEventListener("focus", () => say(cell));
    cell.addEventListener("keydown", (event) => {
      if (event.key === " ") {
        event.preventDefault();
        cell.click();
      }
      const step = steps[event.key];
      if (!step) return;
      event.preventDefault();
      const [row, column] = place(cell);
      const next = at.get([row + step[0], column + step[1]].join());
      if (next) {
        stop(next);
        next.focus();
      }
    });
  }
  // A page of hundreds of heads packs all but the first.
  const packed = document.getElementById("packed");
  let articles;
  const unpack = () => {
    const bytes = Uint8Array.from(atob(packed.textContent), (c) => c.charCodeAt(0));
    const text = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const entry = (one) => [/id="(h\d+)"/.exec(one)[1], one];
    return new Response(text).text().then((all) => new Map(all.split("\0").map(entry)));
  };
  const show = async () => {
    const id = location.hash.slice(1);
    if (packed && /^h\d+$/.test(id) && !document.getElementById(id)) {
      articles ??= unpack();
      const html = (await articles).get(id);
      if (html && !document.getElementById(id)) {
        first.insertAdjacentHTML("beforebegin", html);
        // The head was not there when the address named it. This makes it the target.
        if (location.hash === "#" + id) location.replace("#" + id);
      }
    }
    mark();
  };
  addEventListener("hashchange", show);
  show();
})();
