import MatryoshkaDiffusion

/// The level of `--stop-at`: 32 of pictures, 16x32 of clips of 16 frames of 32 pixels.
struct AskedLevel {
  private let frames: Int?
  private let side: Int
  private let text: String

  /// nil if the text is neither SIDE nor FRAMESxSIDE.
  init?(_ text: String) {
    let numbers = text.lowercased().split(separator: "x", omittingEmptySubsequences: false).map { Int($0) }
    guard (1...2).contains(numbers.count), let side = numbers.last ?? nil else { return nil }
    if numbers.count == 2 && numbers[0] == nil { return nil }
    (self.text, self.side, frames) = (text, side, numbers.count == 2 ? numbers[0] : nil)
  }

  /// The side as ``PictureRequest/stopAt`` takes it. A side alone is not enough for clips: 16 could mean 16
  /// frames of 16 pixels, or their key frame.
  func stopAt(in manifest: Manifest) throws -> Int {
    guard manifest.video != nil else {
      guard frames == nil else {
        throw refusal("this model makes pictures, so give a side alone: \(manifest.levels.map(\.side))")
      }
      return side
    }
    let shapes = zip(manifest.frameCounts, manifest.frameSides)
    for (level, shape) in zip(manifest.levels, shapes) where shape == (frames ?? 0, side) {
      return level.side
    }
    let known = shapes.map { "\($0)x\($1)" }.joined(separator: ", ")
    throw refusal("this model makes clips, so give frames x side: \(known); got \(text)")
  }

  private func refusal(_ reason: String) -> MatryoshkaError {
    .invalidArgument(name: "stopAt", reason: reason)
  }
}
