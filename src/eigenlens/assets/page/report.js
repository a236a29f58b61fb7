const numbers = JSON.parse(document.getElementById('numbers').textContent);
const panel = document.getElementById('panel');
document.addEventListener('click', event => {
  const button = event.target.closest('[data-number]');
  if (!button) return;
  const about = numbers[button.dataset.number];
  panel.querySelector('h3').textContent = about.title;
  const [text, note] = panel.querySelectorAll('p');
  text.textContent = about.text + (about.points.length > 1 ? '; values ' + about.points.join(', ') : '');
  note.textContent = Object.entries(about.further).map(([name, value]) => name + ' ' + value).join(', ');
  panel.querySelector('code').textContent = about.command;
  panel.showModal();
});
document.getElementById('copy').addEventListener('click', () =>
  navigator.clipboard && navigator.clipboard.writeText(panel.querySelector('code').textContent));
