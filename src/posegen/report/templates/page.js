// A click on a column's name sorts each group of rows by it, the best first; another click turns the order.
document.querySelectorAll('table.sortable thead button').forEach(button => button.addEventListener('click', () => {
  const th = button.closest('th'), i = th.cellIndex, now = th.getAttribute('aria-sort'), first = th.dataset.first;
  const up = now ? now !== 'ascending' : first !== 'descending';
  th.closest('tr').querySelectorAll('th').forEach(other => other.removeAttribute('aria-sort'));
  th.setAttribute('aria-sort', up ? 'ascending' : 'descending');
  const key = row => {
    const text = row.cells[i] ? row.cells[i].textContent : '', value = parseFloat(text);
    return isNaN(value) ? (i ? null : text) : i ? value : text;
  };
  const order = (a, b) => a === null || b === null
    ? (a === null) - (b === null)
    : (up ? 1 : -1) * (typeof a === 'number' ? a - b : a.localeCompare(b));
  for (const body of th.closest('table').tBodies)
    [...body.rows]
      .filter(row => row.className !== 'label')
      .sort((a, b) => order(key(a), key(b)))
      .forEach(row => body.append(row));
}));

// Tables that are wider than the window say so, and the keyboard can scroll them.
const markWide = () => document.querySelectorAll('.scroll').forEach(box => {
  const wide = box.scrollWidth > box.clientWidth + 1;
  box.classList.toggle('wide', wide);
  if (wide) box.tabIndex = 0; else box.removeAttribute('tabindex');
});
addEventListener('resize', markWide);
document.addEventListener('toggle', markWide, true);
markWide();
