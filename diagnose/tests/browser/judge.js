// Judges the page that it is evaluated in: text that cannot be read, texts on one another, a page wider than its window.
(() => {
  const found = [];
  const rgba = (text) => {
    const n = (text.match(/[\d.]+/g) || []).map(Number);
    return n.length < 3 ? [0, 0, 0, 0] : [n[0], n[1], n[2], n.length > 3 ? n[3] : 1];
  };
  const over = (a, b) => [0, 1, 2].map((i) => a[i] * a[3] + b[i] * (1 - a[3])).concat(1);
  const light = (c) => {
    const [r, g, b] = c.slice(0, 3).map((v) => {
      const s = v / 255;
      return s <= 0.04045 ? s / 12.92 : ((s + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (a, b) => {
    const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
    return (x + 0.05) / (y + 0.05);
  };
  const ground = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) {
      const colour = rgba(getComputedStyle(e).backgroundColor);
      if (colour[3] > 0) layers.push(colour);
      if (colour[3] === 1) break;
    }
    return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255, 1]);
  };
  const shown = (element) => element.checkVisibility({ visibilityProperty: true, opacityProperty: true });
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let texts = 0;
  while (walker.nextNode()) {
    const text = walker.currentNode.data.trim();
    const element = walker.currentNode.parentElement;
    if (!text || ["SCRIPT", "STYLE"].includes(element.tagName) || element.closest("defs") || !shown(element)) continue;
    texts += 1;
    const style = getComputedStyle(element);
    const ink = rgba(element instanceof SVGElement ? style.fill : style.color);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    const ratio = contrast(over(ink, ground(element)), ground(element));
    if (ratio < (large ? 3 : 4.5)) found.push(`contrast ${ratio.toFixed(2)}: ${text.slice(0, 40)} (${element.tagName} ${element.className})`);
  }
  // Texts of frames are drawn by `use`, in the same units.
  for (const use of document.querySelectorAll("svg.c use")) {
    const svg = use.ownerSVGElement;
    if (!shown(svg)) continue;
    const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
    const frame = document.querySelector(use.getAttribute("href"));
    const boxes = [...frame.querySelectorAll("text"), ...svg.querySelectorAll("text")].map((text) => {
      const width = text.textContent.length * 0.62 * parseFloat(getComputedStyle(svg).fontSize);
      const x = Number(text.getAttribute("x"));
      const anchor = text.getAttribute("text-anchor");
      const left = anchor === "end" ? x - width : anchor === "middle" ? x - width / 2 : x;
      const y = Number(text.getAttribute("y"));
      // Digits are all as wide, and two numbers that touch are read as one.
      const narrower = /^[\d.]+$/.test(text.textContent) ? 1.1 : 0.9;
      return { text: text.textContent, left, right: left + width * narrower, top: y - 10, bottom: y };
    });
    const size = scale * parseFloat(getComputedStyle(svg).fontSize);
    if (size < 9) found.push(`text of ${size.toFixed(1)} px in a chart`);
    for (let i = 0; i < boxes.length; i++) {
      const a = boxes[i];
      if (a.left < -3 || a.right > svg.viewBox.baseVal.width + 6) found.push(`cut off: ${a.text}`);
      for (let j = 0; j < i; j++) {
        const b = boxes[j];
        if (a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom) found.push(`on one another: ${a.text}, ${b.text}`);
      }
    }
  }
  // A rule breaks between its parts only.
  for (const rule of document.querySelectorAll(".rules th[scope=row]")) {
    if (!shown(rule)) continue;
    const walker = document.createTreeWalker(rule, NodeFilter.SHOW_TEXT);
    let before = null;
    while (walker.nextNode()) {
      const node = walker.currentNode;
      for (let i = 0; i < node.data.length; i++) {
        const range = document.createRange();
        range.setStart(node, i);
        range.setEnd(node, i + 1);
        const box = range.getBoundingClientRect();
        if (before && box.top > before.bottom - 2 && !",:= ".includes(before.text)) found.push(`broken after ${before.text}: ${rule.textContent}`);
        if (box.width) before = { text: node.data[i], bottom: box.bottom };
      }
    }
  }
  // What scrolls says so at its edge; rules need not.
  for (const box of document.querySelectorAll(".scroll,.grid")) {
    if (!shown(box) || box.scrollWidth <= box.clientWidth) continue;
    if (!getComputedStyle(box).backgroundAttachment.includes("local")) found.push(`scrolls without a hint: ${box.className}`);
    if (box.querySelector(".rules")) found.push(`rules ${box.scrollWidth} px wide in ${box.clientWidth}`);
  }
  const page = document.documentElement;
  if (page.scrollWidth > window.innerWidth) {
    const wide = [...document.querySelectorAll("body *")].filter((e) => shown(e) && !e.closest(".scroll,.grid,svg") && e.getBoundingClientRect().right > window.innerWidth + 1);
    found.push(`${page.scrollWidth} px wide in a window of ${window.innerWidth}: ${wide.slice(0, 3).map((e) => e.tagName + "." + e.className).join(", ")}`);
  }
  return { found: [...new Set(found)].slice(0, 12), texts };
})()
