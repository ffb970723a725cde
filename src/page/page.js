// What links and styles cannot do: arrow keys in the map, a readout of the cell under the pointer, the chosen cell marked.
(() => {
  const cells = [...document.querySelectorAll(".grid a")];
  if (!cells.length) return;
  const readout = document.getElementById("readout");
  const first = document.querySelector(".head.first");
  const say = (cell) => (readout.textContent = cell.title.split("\n").join(" · "));
  const chosen = () => document.querySelector(".head:target") || first;
  const place = (cell) => [cell.closest("tr").rowIndex, cell.closest("td").cellIndex];
  const at = new Map(cells.map((cell) => [place(cell).join(), cell]));
  const stop = (cell) => {
    // One stop for the tab key, the arrows move within.
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
  addEventListener("hashchange", mark);
  mark();
})();
