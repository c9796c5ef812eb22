import DiffusionCore

/// A frame as encoders of movies take it: 8 bits of blue, green, red and alpha, row by row.
package struct MovieFrame: Equatable {
  /// Players blur what is smaller.
  package static let leastSide = 256

  package let width: Int
  package let height: Int
  private let picture: Picture
  private let factor: Int

  /// Enlarges a picture by repetition to ``leastSide`` or more, and to even sides, which H.264 needs.
  package init(_ picture: Picture) {
    let least = (Self.leastSide - 1) / min(picture.width, picture.height) + 1
    let isOdd = least % 2 == 1 && (picture.width % 2 == 1 || picture.height % 2 == 1)
    factor = isOdd ? least + 1 : least
    (width, height) = (picture.width * factor, picture.height * factor)
    self.picture = picture
  }

  /// Writes all rows; each has `bytesPerRow` bytes, of which those beyond the width stay as they are.
  package func write(to out: UnsafeMutableRawBufferPointer, bytesPerRow: Int) {
    precondition(bytesPerRow >= 4 * width && out.count >= bytesPerRow * height, "the frame fits")
    for row in 0..<height {
      let from = row / factor * picture.width
      for column in 0..<width {
        let pixel = 3 * (from + column / factor)
        let place = row * bytesPerRow + 4 * column
        out[place] = picture.rgb[pixel + 2]
        out[place + 1] = picture.rgb[pixel + 1]
        out[place + 2] = picture.rgb[pixel]
        out[place + 3] = 255
      }
    }
  }
}
